"""Sending runs to MLflow, once each, from the files of their run folder."""

from __future__ import annotations

import logging
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import InterpError
from pipeline.config.tracking import TrackingConfig, load_tracking_config
from pipeline.stages.common import file_digest, write_json
from pipeline.tracking.client import connect, experiment_id, first_line, lock, tracking_uri
from pipeline.tracking.payload import Payload, read_json, read_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("interpipe")

PARAMETERS_A_BATCH, METRICS_A_BATCH, TAGS_A_BATCH = 100, 1000, 100  # MLflow's limits
KEY_TAG, SWEEP_TAG, PARENT_TAG = "interpipe.run_key", "interpipe.sweep", "mlflow.parentRunId"


def now() -> int:
    """Milliseconds since 1970-01-01 UTC."""
    return round(datetime.now(UTC).timestamp() * 1000)


def find(client: MlflowClient, experiment: str, tag: str, value: str) -> str | None:
    """The id of the run that carries a tag, if there is one."""
    runs = client.search_runs([experiment], filter_string=f"tags.`{tag}` = '{value}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def sweep_parent(client: MlflowClient, experiment: str, sweep: str) -> str:
    """The run under which a sweep's runs stand; it is made where there is none. Call it under `lock()`."""
    parent = find(client, experiment, SWEEP_TAG, sweep)
    if parent is None:
        run = client.create_run(experiment, run_name=sweep, tags={SWEEP_TAG: sweep, "interpipe.kind": "sweep"})
        parent = str(run.info.run_id)
    return parent


def begin_sweep(config: TrackingConfig, name: str, overrides: list[str]) -> None:
    """Make a sweep's parent run, before its jobs start.

    Arguments:
        config: section `tracking`.
        name: name of the sweep; a run's `run.json` refers to it.
        overrides: the command line of the sweep.
    """
    if not config.enabled:
        return
    try:
        with lock():
            client = connect(config)
            parent = sweep_parent(client, experiment_id(client, config), name)
            client.set_tag(parent, "overrides", " ".join(overrides)[:4000])
    except Exception as error:  # tracking must never cost the run, whatever is wrong with it
        log.warning("tracking: the sweep's parent run could not be made (%s)", first_line(error))


def end_sweep(config: TrackingConfig, name: str, status: str) -> None:
    """Close a sweep's parent run.

    Arguments:
        config: section `tracking`.
        name: name of the sweep.
        status: `FINISHED`, `FAILED` (some job failed) or `KILLED`.
    """
    if not config.enabled:
        return
    try:
        with lock():
            client = connect(config)
            parent = sweep_parent(client, experiment_id(client, config), name)
        client.set_terminated(parent, status=status)
    except Exception as error:  # as above
        log.warning("tracking: the sweep's parent run could not be closed (%s)", first_line(error))


def log_run(folder: str | Path) -> bool:
    """Send a run to MLflow; a server that is down costs a warning and leaves the run to `sync`.

    Arguments:
        folder: the run folder.

    Returns:
        Whether MLflow has the run now.
    """
    folder = Path(folder)
    config = load_tracking_config(str(folder / "params.yaml"))
    if not config.enabled:
        return False
    try:
        send(folder, config)
    except InterpError:
        raise
    except Exception as error:  # tracking must never cost the run, whatever is wrong with it
        log.warning(
            "tracking: %s did not take the run (%s). Its results are complete in %s; send it later with\n"
            "    python -m pipeline.tracking sync '%s'",
            tracking_uri(config), first_line(error), folder, folder,
        )  # fmt: skip
        return False
    return True


def send(folder: Path, config: TrackingConfig) -> str:
    """Send a run, or what is missing of it, exactly once.

    `tracking.json` in the run folder holds a key that the MLflow run carries as a tag: a run that was created before
    the server died is found again. Metrics carry the run's own time, so that sending them again changes nothing.

    Arguments:
        folder: the run folder.
        config: section `tracking`.

    Returns:
        The MLflow run's id.

    Raises:
        InterpError: the folder holds no run.
    """
    payload = read_run(folder)
    record_path = folder / "tracking.json"
    try:
        record = read_json(record_path)
    except ValueError:  # cut short by a full disk or another program; ours is written whole
        log.warning(
            "tracking: %s cannot be read, so that a run which it named is left, and another one begun", record_path
        )
        record = {}
    uri, state = tracking_uri(config), file_digest(folder / "run.json")
    if record.get("uri") == uri and record.get("sent") == state:
        return str(record["run_id"])
    key = record.get("key") or uuid.uuid4().hex
    write_json(record_path, {"key": key, "uri": uri, "sent": None})

    with lock():
        client = connect(config)
        experiment = experiment_id(client, config)
        tags = payload.tags | {KEY_TAG: key}
        if payload.sweep:
            tags[PARENT_TAG] = sweep_parent(client, experiment, payload.sweep)
        run_id = find(client, experiment, KEY_TAG, key)
        if run_id is None:
            run = client.create_run(experiment, start_time=payload.started, run_name=payload.name, tags={KEY_TAG: key})
            run_id = str(run.info.run_id)
    fill(client, run_id, payload, tags)
    write_json(record_path, {"key": key, "uri": uri, "sent": state, "run_id": run_id})
    return run_id


def fill(client: MlflowClient, run_id: str, payload: Payload, tags: dict[str, str]) -> None:
    """Write a run's content; writing the same content again changes nothing."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag

    metrics = [Metric(name, value, payload.ended, layer) for name, layer, value in payload.curves]
    metrics += [Metric(name, value, payload.ended, 0) for name, value in payload.summary.items()]
    parameters = [Param(key, value) for key, value in payload.parameters.items()]
    run_tags = [RunTag(key, value) for key, value in tags.items()]
    for start in range(0, len(run_tags), TAGS_A_BATCH):
        client.log_batch(run_id, tags=run_tags[start : start + TAGS_A_BATCH])
    for start in range(0, len(parameters), PARAMETERS_A_BATCH):
        client.log_batch(run_id, params=parameters[start : start + PARAMETERS_A_BATCH])
    for start in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_BATCH])
    if payload.dataset is not None:
        name, source, digest = payload.dataset
        dataset = MetaDataset(CodeDatasetSource({"folder": source}), name=name, digest=digest[:36])
        context = [InputTag("mlflow.data.context", "prompts")]
        client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), context)])
    for artifact in payload.artifacts:
        if artifact.is_dir():
            client.log_artifacts(run_id, str(artifact), artifact.name)
        else:
            client.log_artifact(run_id, str(artifact))
    client.set_terminated(run_id, status=payload.status, end_time=payload.ended)

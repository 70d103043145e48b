"""Send runs to MLflow, once each, from the files of their run folder, and set up the server or database they go to.

It runs in a process of its own (`pipeline.tracking.bounded`).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pipeline.config.tracking import TrackingConfig, masked
from pipeline.files import file_digest, write_json
from pipeline.project import project_root
from pipeline.tracking.payload import Payload, read_json, read_run

if TYPE_CHECKING:
    from mlflow import MlflowClient


PARAMETERS_A_BATCH, METRICS_A_BATCH, TAGS_A_BATCH = 100, 1000, 100  # MLflow's limits
log = logging.getLogger("interpipe")
KEY_TAG, SWEEP_TAG, PARENT_TAG = "interpipe.run_key", "interpipe.sweep_key", "mlflow.parentRunId"


def tag_value(key: str) -> str:
    """What a key is as the value of a tag that is searched for: hexadecimal, whatever it holds.

    MLflow's filters are texts in which quotes cannot be escaped; names and paths hold quotes, commas and equals signs.
    """
    return hashlib.sha256(key.encode()).hexdigest()


def the_one(client: MlflowClient, experiment: str, tag: str, key: str, make: Callable[[dict[str, str]], str]) -> str:
    """The run that carries a key; it is made where there is none.

    No lock guards it, since a server that hangs would hold all who wait for it: of several that were made at once all
    but the first are deleted, and everybody comes to the same one.

    Arguments:
        client: of MLflow.
        experiment: its id.
        tag: name of the tag that holds the key.
        key: the key.
        make: makes a run with the tags that it is given; returns its id.
    """
    value = tag_value(key)

    def found() -> list[str]:
        runs = client.search_runs([experiment], filter_string=f"tags.`{tag}` = '{value}'", max_results=100)
        # In one order for everybody; the times of runs that were made at once may be equal.
        return [str(run.info.run_id) for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))]

    present = found()
    if present:
        return present[0]
    made = make({tag: value})
    first = (found() or [made])[0]
    if first != made:
        client.delete_run(made)
    return first


def open_sweep(target: Target, name: str, key: str, overrides: Sequence[str], *, seconds: float = 60) -> str:
    """Make a sweep's parent run, before its jobs start; returns its id.

    Arguments:
        target: where.
        name: name of the sweep.
        key: of the sweep; a run's `run.json` refers to it.
        overrides: the command line of the sweep.
        seconds: for one call.
    """
    with made_once(target):
        client = connect(target.uri, seconds)
        experiment = experiment_id(client, target)
    parent = _sweep_parent(client, experiment, name, key)
    client.set_tag(parent, "overrides", " ".join(overrides)[:4000])
    return parent


def close_sweep(target: Target, name: str, key: str, status: str, *, seconds: float = 60) -> None:
    """Close a sweep's parent run as `FINISHED`, `FAILED` (some job failed) or `KILLED`; else as `open_sweep`."""
    client = connect(target.uri, seconds)
    parent = _sweep_parent(client, experiment_id(client, target), name, key)
    if client.get_run(parent).info.status != status:  # closed again it would seem to have taken until now
        client.set_terminated(parent, status=status)


def _sweep_parent(client: MlflowClient, experiment: str, name: str, key: str) -> str:
    """The run under which a sweep's runs stand."""

    def make(tags: dict[str, str]) -> str:
        tags = tags | {"interpipe.sweep": name, "interpipe.kind": "sweep"}
        return str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)

    return the_one(client, experiment, SWEEP_TAG, key, make)


def send(target: Target, folder: str, *, seconds: float = 60) -> str:
    """Send a run, or what is missing of it, exactly once; returns the MLflow run's id.

    `tracking.json` in the run folder holds a key that the MLflow run carries as a tag: a run that was created before
    the server died is found again. Metrics carry the run's own time, so that sending them again changes nothing.

    Arguments:
        target: where.
        folder: the run folder.
        seconds: for one call.

    Raises:
        InterpError: the folder holds no run.
    """
    place = Path(folder)
    payload = read_run(place)
    record_path = place / "tracking.json"
    record: dict[str, Any] = {}
    with contextlib.suppress(ValueError):  # cut short, as `sent_already` has said
        record = read_json(record_path)
    state = file_digest(place / "run.json")
    key = record.get("key") or uuid.uuid4().hex
    write_json(record_path, {"key": key, "uri": target.shown, "sent": None})
    with made_once(target):
        client = connect(target.uri, seconds)
        experiment = experiment_id(client, target)
    tags = dict(payload.tags)
    if payload.sweep:
        tags[PARENT_TAG] = _sweep_parent(client, experiment, *payload.sweep)

    def make(key_tags: Mapping[str, Any]) -> str:
        run = client.create_run(experiment, start_time=payload.started, run_name=payload.name, tags=dict(key_tags))
        return str(run.info.run_id)

    run_id = the_one(client, experiment, KEY_TAG, key, make)
    fill(client, run_id, payload, tags)
    write_json(record_path, {"key": key, "uri": target.shown, "sent": state, "run_id": run_id})
    return run_id


def sent_already(target: Target, folder: Path) -> str | None:
    """The id of the MLflow run that holds all that a run folder tells; None: it must be sent."""
    file = folder / "tracking.json"
    try:
        record = read_json(file)
    except ValueError:  # by a full disk or another program; ours is written whole
        log.warning("tracking: %s cannot be read, so that a run which it named is left, and another one begun", file)
        return None
    same = record.get("uri") == target.shown and (folder / "run.json").is_file()
    return str(record["run_id"]) if same and record.get("sent") == file_digest(folder / "run.json") else None


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
        if artifact.name == "params.yaml":  # the run folder's own has all that it takes to send the run
            client.log_text(run_id, masked(artifact.read_text(encoding="utf-8")), artifact.name)
        elif artifact.is_dir():
            client.log_artifacts(run_id, str(artifact), artifact.name)
        else:
            client.log_artifact(run_id, str(artifact))
    client.set_terminated(run_id, status=payload.status, end_time=payload.ended)


SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Target:
    """Where runs go.

    Arguments:
        uri: of the server or database, absolute, so that every folder finds it.
        experiment: name of the MLflow experiment.
        root: the project's folder.
    """

    uri: str
    experiment: str
    root: str

    @property
    def shown(self) -> str:
        """The URI without a password."""
        return masked(self.uri)

    @property
    def local(self) -> bool:
        """Whether it is a database in a file, and no server."""
        return self.uri.startswith(SQLITE)

    @property
    def own(self) -> bool:
        """Whether it is the project's own database."""
        return self.uri == own_database(Path(self.root))

    @property
    def marker(self) -> Path:
        """The file that says that database and experiment are there."""
        name = hashlib.sha256(self.experiment.encode()).hexdigest()[:32]
        return Path(self.root) / ".interpipe" / "tracking" / f"{name}.ready"


def own_database(root: Path) -> str:
    """The URI of the project's own database."""
    return f"{SQLITE}{root / 'mlflow.db'}"


def tracking_uri(config: TrackingConfig) -> str:
    """Where runs go: the config's URI, or sqlite in the project's root, absolute so that every folder finds it."""
    return config.uri or own_database(project_root())


def target_of(config: TrackingConfig) -> Target:
    """Where runs go, by the section `tracking`."""
    return Target(tracking_uri(config), config.experiment, str(project_root()))


@contextlib.contextmanager
def made_once(target: Target) -> Iterator[None]:
    """Hold what lets only one process at a time make a database in a file.

    Parallel processes that open a fresh sqlite database destroy it: each runs the migrations. A server does that for
    itself, and is never asked anything while a lock is held: one that hangs would hold all runs of the project.
    """
    if not target.local:
        yield
        return
    folder = Path(target.root) / ".interpipe" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "mlflow.lock"):
        place = Path(target.uri.removeprefix(SQLITE))
        if not place.exists() and "?" not in target.uri:
            place.parent.mkdir(parents=True, exist_ok=True)
            staged = place.with_name(f".{place.name}.incoming")
            staged.unlink(missing_ok=True)
            connect(f"{SQLITE}{staged}").search_experiments(max_results=1)  # the first question makes the tables
            os.replace(staged, place)  # one whose tables are half made would be of no use to anybody
        yield


def connect(uri: str, seconds: float = 60) -> MlflowClient:
    """A client that tries once: by default MLflow tries seven times with growing pauses, four minutes for each call.

    How long it may take in all is bounded from outside (`pipeline.tracking.bounded`).

    Arguments:
        uri: of the server or database.
        seconds: that one call may take.
    """
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(seconds)))
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a page of migrations on the first run
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def experiment_id(client: MlflowClient, target: Target) -> str:
    """The experiment's id; it is made where there is none."""
    found = client.get_experiment_by_name(target.experiment)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if target.local:  # a server chooses its own place for artifacts; here they lie beside the database
        location = (Path(target.uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()
    # The kind decides which of MLflow's pages opens: that of training runs, with their charts.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return str(client.create_experiment(target.experiment, artifact_location=location, tags=tags))
    except Exception:
        found = client.get_experiment_by_name(target.experiment)  # another process may have been faster
        if found is None:
            raise
        return str(found.experiment_id)


def make_ready(target: Target, seconds: float = 60) -> None:
    """Make the database and the experiment, where they are not there."""
    with made_once(target):
        experiment_id(connect(target.uri, seconds), target)
    if target.own:
        target.marker.parent.mkdir(parents=True, exist_ok=True)
        target.marker.touch()


def first_line(error: BaseException) -> str:
    """An error's first line, cut to a readable length, without the password of an address."""
    return masked((str(error) or type(error).__name__).splitlines()[0])[:200]

"""The MLflow server or database that runs go to: where it is, made once, never waited for long."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from pipeline.config.tracking import TrackingConfig
from pipeline.stages.common import repository_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("interpipe")


def tracking_uri(config: TrackingConfig) -> str:
    """Where runs go: the config's URI, or sqlite in the repository's root, absolute so that every folder finds it."""
    return config.uri or f"sqlite:///{repository_root() / 'mlflow.db'}"


def lock() -> FileLock:
    """The lock under which the database, the experiment and a sweep's parent run are made, once."""
    folder = repository_root() / ".interpipe" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "mlflow.lock")


def connect(config: TrackingConfig) -> MlflowClient:
    """A client that gives up on an unreachable server after about `config.timeout` seconds.

    By default MLflow tries seven times with growing pauses, which is four minutes for each call.
    """
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(config.timeout)
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a page of migrations on the first run
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri(config))


def experiment_id(client: MlflowClient, config: TrackingConfig) -> str:
    """The experiment's id; it is made where there is none. Call it under `lock()`."""
    found = client.get_experiment_by_name(config.experiment)
    if found is not None:
        return str(found.experiment_id)
    uri, location = tracking_uri(config), None
    if uri.startswith("sqlite:///"):  # a server chooses its own place for artifacts; here they lie beside the database
        location = (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
    # The kind decides which of MLflow's pages opens: that of training runs, with their charts.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(config.experiment, artifact_location=location, tags=tags))


def prepare(config: TrackingConfig) -> bool:
    """Make the database and the experiment once, before any job starts.

    Parallel jobs that open a fresh sqlite database destroy it: each runs the migrations.

    Arguments:
        config: section `tracking`.

    Returns:
        Whether runs can be tracked now. An unreachable server costs a warning, never the run.
    """
    if not config.enabled:
        return False
    if config.uri is None and marker(config).is_file() and (repository_root() / "mlflow.db").is_file():
        return True  # spares a run the import of MLflow
    try:
        with lock():
            experiment_id(connect(config), config)
            if config.uri is None:
                marker(config).parent.mkdir(parents=True, exist_ok=True)
                marker(config).touch()
    except Exception as error:  # tracking must never cost the run, whatever is wrong with it
        log.warning(
            "tracking: %s cannot be reached (%s). The run goes on and keeps its results on disk.",
            tracking_uri(config), first_line(error),
        )  # fmt: skip
        return False
    return True


def marker(config: TrackingConfig) -> Path:
    """The file that says that database and experiment are there."""
    return repository_root() / ".interpipe" / "tracking" / f"{config.experiment.encode().hex()[:80]}.ready"


def first_line(error: BaseException) -> str:
    """An error's first line, cut to a readable length."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]

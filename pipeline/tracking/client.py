"""The MLflow server or database that runs go to: where it is, and what is made there once."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from pipeline.config.tracking import TrackingConfig, masked
from pipeline.project import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

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

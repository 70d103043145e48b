"""Send a run or a sweep to MLflow at the cost of a warning at most, never of the run, and of a bounded time in all."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.section import load
from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.bounded import Allowance, Mlflow, TrackingFailed, ask
from pipeline.tracking.sending import Target, first_line, sent_already, target_of

__all__ = ["Allowance", "begin_sweep", "close_sweep", "end_sweep", "log_run", "prepare", "ready_beside", "send"]

log = logging.getLogger("interpipe")


@contextlib.contextmanager
def ready_beside(config: TrackingConfig, allowance: Allowance) -> Iterator[None]:
    """Import MLflow beside what is done meanwhile; what costs this allowance is asked of it.

    Arguments:
        config: section `tracking`.
        allowance: of a run.
    """
    if not config.enabled:
        yield
        return
    allowance.mlflow = Mlflow()
    try:
        with contextlib.suppress(OSError):  # whoever asks it hears what is wrong
            allowance.mlflow.start()
        yield
    finally:
        allowance.mlflow.close()
        allowance.mlflow = None


def prepare(config: TrackingConfig, allowance: Allowance) -> bool:
    """Make the database and the experiment, before a run starts.

    Arguments:
        config: section `tracking`.
        allowance: what tracking may cost.

    Returns:
        Whether runs can be tracked now.
    """
    if not config.enabled:
        return False
    target = target_of(config)
    if target.own and target.marker.is_file() and (Path(target.root) / "mlflow.db").is_file():
        return True  # spares a run the import of MLflow
    why = _tried(target, "make_ready", {}, allowance)
    if why:
        log.warning(
            "tracking: %s cannot be reached (%s). The run goes on and keeps its results on disk.", target.shown, why
        )
    return not why


def begin_sweep(config: TrackingConfig, sweep: Mapping[str, Any], allowance: Allowance) -> bool:
    """Make the database, the experiment and a sweep's parent run, before any job starts.

    Arguments:
        config: section `tracking`.
        sweep: `name`, `key` and `overrides` of the sweep.
        allowance: what tracking may cost the sweep.

    Returns:
        Whether that was done.
    """
    if not config.enabled:
        return False
    arguments = {key: sweep[key] for key in ("name", "key", "overrides")}
    target = target_of(config)
    why = _tried(target, "open_sweep", arguments, allowance)
    if why:
        log.warning(
            "tracking: %s cannot be reached (%s). The sweep goes on and keeps its results on disk.", target.shown, why
        )
    return not why


def end_sweep(config: TrackingConfig, sweep: Mapping[str, Any], status: str, allowance: Allowance) -> None:
    """Close a sweep's parent run; a server that is down or hangs costs a warning and leaves that to `sync`.

    Arguments:
        config: section `tracking`.
        sweep: `name` and `key` of the sweep.
        status: `FINISHED`, `FAILED` (some job failed) or `KILLED`.
        allowance: what tracking may still cost the sweep.
    """
    if not config.enabled:
        return
    try:
        close_sweep(config, sweep, status, allowance)
    except Exception as error:  # as in `log_run`
        log.warning(
            "tracking: the sweep's parent run could not be closed (%s); do it later, and send what is missing, with\n"
            "    python -m pipeline.tracking sync %s",
            first_line(error), shlex.quote(sweep["name"]),
        )  # fmt: skip


def close_sweep(config: TrackingConfig, sweep: Mapping[str, Any], status: str, allowance: Allowance) -> None:
    """As `end_sweep`, whether tracking is enabled or not.

    Raises:
        TrackingFailed: MLflow did not do it.
    """
    arguments = {"name": sweep["name"], "key": sweep["key"], "status": status}
    _asked(target_of(config), "close_sweep", arguments, allowance)


def log_run(folder: str | Path, allowance: Allowance | None = None) -> bool:
    """Send a run to MLflow; a server that is down or hangs costs a warning and leaves the run to `sync`.

    Arguments:
        folder: the run folder.
        allowance: what tracking may still cost; None: what the config allows a run.

    Returns:
        Whether MLflow has the run now.

    Raises:
        InterpError: the folder holds no config.
    """
    folder = Path(folder)
    config = load(TrackingConfig, str(folder / "params.yaml"))
    if not config.enabled:
        return False
    try:
        send(folder, config, allowance or Allowance(config))
    except Exception as error:  # tracking must never cost the run, whatever is wrong with it
        log.warning(
            "tracking: %s did not take the run (%s). Its results are complete in %s; send it later with\n"
            "    python -m pipeline.tracking sync %s",
            target_of(config).shown, first_line(error), folder, shlex.quote(str(folder)),
        )  # fmt: skip
        return False
    return True


def send(folder: Path, config: TrackingConfig, allowance: Allowance) -> str:
    """Send a run, or what is missing of it; returns the MLflow run's id.

    Arguments:
        folder: the run folder.
        config: section `tracking`.
        allowance: what it may cost.

    Raises:
        TrackingFailed: MLflow did not take it, or the folder holds no run.
    """
    folder, target = folder.absolute(), target_of(config)
    present = sent_already(target, folder)
    return present or str(_asked(target, "send", {"folder": str(folder)}, allowance))


def _tried(target: Target, action: str, arguments: Mapping[str, Any], allowance: Allowance) -> str:
    """Have something done with MLflow; returns why it was not, empty: it was."""
    try:
        _asked(target, action, arguments, allowance)
    except Exception as error:  # tracking must never cost the run, whatever is wrong with it
        return first_line(error)
    return ""


def _asked(target: Target, action: str, arguments: Mapping[str, Any], allowance: Allowance) -> Any:
    """`ask`, within what is left, which it lessens."""
    if allowance.left <= 0:
        raise TrackingFailed("it has cost this run or its sweep all the time that tracking.timeout allows")
    try:
        asked = allowance.mlflow.ask if allowance.mlflow else ask
        result, waited = asked(target, action, arguments, allowance.left)
    except TrackingFailed as error:
        allowance.spend(error.waited)
        raise
    if action != "send":  # a run that arrives takes no time from the other jobs of its sweep
        allowance.spend(waited)
    return result

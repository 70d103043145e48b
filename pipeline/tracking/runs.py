"""Send a run or a sweep to MLflow at the cost of a warning at most, never of the run, and of a bounded time in all.

MLflow is asked in a process of its own, which is killed when its time is over. Its own limits hold for one try of one
call, and a server that sends a byte now and then keeps to them for ever; a deadline that somebody else enforces holds
whatever a library does.

    python -m pipeline.tracking.runs        # the process; a request comes through its standard input
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from pipeline.config.base import load
from pipeline.config.tracking import TrackingConfig
from pipeline.files import write_json
from pipeline.project import project_root
from pipeline.tracking import sending
from pipeline.tracking.payload import read_json
from pipeline.tracking.sending import Target, first_line, make_ready, sent_already, target_of

__all__ = [
    "Allowance",
    "TrackingFailed",
    "ask",
    "begin_sweep",
    "close_sweep",
    "end_sweep",
    "log_run",
    "prepare",
    "send",
]


log = logging.getLogger("interpipe")


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
        result, waited = ask(target, action, arguments, allowance.left)
    except TrackingFailed as error:
        allowance.spend(error.waited)
        raise
    if action != "send":  # a run that arrives takes no time from the other jobs of its sweep
        allowance.spend(waited)
    return result


LOADING_SECONDS = 120  # for this machine to start Python and import MLflow, before any server is asked
LOADED = b"loaded"
LOCAL = 4  # times as long for a database in a file: nothing but this machine's own load delays it


class TrackingFailed(Exception):
    """MLflow did not do what it was asked, or not in time.

    Arguments:
        message: why.
        waited: seconds that were waited for it.
    """

    def __init__(self, message: str, waited: float = 0.0) -> None:
        super().__init__(message)
        self.waited = waited


class Allowance:
    """The seconds that tracking may still cost a run, or a sweep with all of its jobs.

    Arguments:
        config: section `tracking`.
        sweep: the folder of the sweep, where its jobs find what is left; None: of one run.
    """

    def __init__(self, config: TrackingConfig, sweep: Path | None = None) -> None:
        target = target_of(config)
        self._left = float(config.timeout * (LOCAL if target.local else 1))
        self._ledger: Path | None = None
        if sweep is not None:
            name = hashlib.sha256(target.uri.encode()).hexdigest()[:16]
            self._ledger = sweep / ".tracking" / f"{name}.json"

    @property
    def left(self) -> float:
        """Seconds that are left."""
        if self._ledger is not None:
            self._left = min(self._left, read_json(self._ledger).get("left", self._left))
        return self._left

    def spend(self, seconds: float) -> None:
        """Take off what was waited for; the other jobs of the sweep see it."""
        self._left = max(0.0, self.left - seconds)
        if self._ledger is not None:
            with contextlib.suppress(OSError):  # a full disk must not cost the run
                write_json(self._ledger, {"left": self._left})


def ask(target: Target, action: str, arguments: Mapping[str, Any], seconds: float) -> tuple[Any, float]:
    """Have something done with MLflow, in a process that is killed when the time is over.

    Arguments:
        target: where.
        action: one of those in `main`.
        arguments: of that, as JSON.
        seconds: how long, from the moment at which MLflow is loaded.

    Returns:
        (What the action returns, the seconds that it took.)

    Raises:
        TrackingFailed: it was not done, or not in time.
    """
    request = {"target": asdict(target), "action": action, "arguments": dict(arguments), "seconds": seconds}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.tracking.runs"],
        cwd=project_root(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt comes here, and ends it below
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin as stream:
            stream.write(json.dumps(request).encode())
        lines = _Lines(process.stdout)
        loaded = lines.next(LOADING_SECONDS)
        if loaded != LOADED:
            raise TrackingFailed(json.loads(loaded)["error"] if loaded else "MLflow could not be loaded")
        started = time.monotonic()
        answer = lines.next(seconds)
        waited = time.monotonic() - started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    if answer is None:
        in_time = waited < seconds
        raise TrackingFailed("MLflow stopped" if in_time else f"no answer within {seconds:.0f} s", waited)
    said = json.loads(answer)
    if "error" in said:
        raise TrackingFailed(said["error"], waited)
    return said["result"], waited


class _Lines:
    """Lines that a process writes, each waited for no longer than one likes.

    Arguments:
        stream: its standard output.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._descriptor, self._read = stream.fileno(), b""
        self._poll = select.poll()  # `select.select` takes no descriptor above 1023
        self._poll.register(self._descriptor, select.POLLIN)

    def next(self, seconds: float) -> bytes | None:
        """The next line; None: it did not come in time, or the process is gone."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or not self._poll.poll(left * 1000):
                return None
            block = os.read(self._descriptor, 1 << 16)
            if not block:
                return None
            self._read += block
        line, _, self._read = self._read.partition(b"\n")
        return line


def main() -> None:
    """Do what standard input asks for, and tell standard output."""
    actions: dict[str, Callable[..., Any]] = {
        "make_ready": make_ready,
        "open_sweep": sending.open_sweep,
        "close_sweep": sending.close_sweep,
        "send": sending.send,
    }
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever MLflow prints is no answer
    request = json.load(sys.stdin)
    try:
        import mlflow  # noqa: F401  # a second or more, which is no server's fault

        answers.write(f"{LOADED.decode()}\n")
        answers.flush()
        # Should the process that asks be killed, this one still ends.
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 1)
        result = actions[request["action"]](
            Target(**request["target"]), seconds=request["seconds"], **request["arguments"]
        )
        said: dict[str, Any] = {"result": result}
    except Exception as error:
        said = {"error": first_line(error)}
    answers.write(json.dumps(said) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()

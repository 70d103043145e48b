"""Bound what tracking may cost: MLflow is asked in a process of its own, which is killed when its time is over.

MLflow's own limits hold for one try of one call, and a server that sends a byte now and then keeps to them for ever. A
deadline that somebody else enforces holds whatever a library does.

    python -m pipeline.tracking.bounded        # the process; requests come through its standard input, one a line
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from pipeline.config.tracking import TrackingConfig
from pipeline.files import write_json
from pipeline.project import project_root
from pipeline.tracking import sending
from pipeline.tracking.payload import read_json
from pipeline.tracking.sending import Target, first_line, make_ready, target_of

__all__ = ["Allowance", "Mlflow", "TrackingFailed", "ask"]

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
        self.mlflow: Mlflow | None = None  # that is ready to be asked; None: it is started when it is asked
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


class Mlflow:
    """MLflow in a process of its own, which imports it at once and then does what it is asked, one after the other.

    It ends by itself where this process does.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: _Lines | None = None
        self._is_loaded = False

    def start(self) -> None:
        """Start the process, where there is none."""
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.tracking.bounded"],
            cwd=project_root(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt comes here, and ends it in `close`
        )
        assert self._process.stdout is not None
        self._lines, self._is_loaded = _Lines(self._process.stdout), False

    def ask(self, target: Target, action: str, arguments: Mapping[str, Any], seconds: float) -> tuple[Any, float]:
        """As `ask`; where the answer does not come, the next question is put to a new process."""
        self.start()
        assert self._process is not None and self._process.stdin is not None and self._lines is not None
        request = {"target": asdict(target), "action": action, "arguments": dict(arguments), "seconds": seconds}
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        if not self._is_loaded:
            loaded = self._lines.next(LOADING_SECONDS)
            if loaded != LOADED:
                self.close()
                raise TrackingFailed(json.loads(loaded)["error"] if loaded else "MLflow could not be loaded")
            self._is_loaded = True
        started = time.monotonic()
        answer = self._lines.next(seconds)
        waited = time.monotonic() - started
        if answer is None:
            self.close()
            in_time = waited < seconds
            raise TrackingFailed("MLflow stopped" if in_time else f"no answer within {seconds:.0f} s", waited)
        said = json.loads(answer)
        if "error" in said:
            raise TrackingFailed(said["error"], waited)
        return said["result"], waited

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._process = None


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
    with contextlib.closing(Mlflow()) as mlflow:
        return mlflow.ask(target, action, arguments, seconds)


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
    """Do what standard input asks for, line by line, and tell standard output."""
    actions: dict[str, Callable[..., Any]] = {
        "make_ready": make_ready,
        "open_sweep": sending.open_sweep,
        "close_sweep": sending.close_sweep,
        "send": sending.send,
    }
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever MLflow prints is no answer

    def say(line: str) -> None:
        answers.write(f"{line}\n")
        answers.flush()

    gc.disable()  # it imports and sends; to look for what can be freed takes a quarter of the time
    try:
        import mlflow  # noqa: F401  # a second or more, which is no server's fault
    except Exception as error:
        say(json.dumps({"error": first_line(error)}))
        return
    say(LOADED.decode())
    for line in sys.stdin:
        request = json.loads(line)
        # Should the process that asks be killed, this one still ends.
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 1)
        try:
            result = actions[request["action"]](
                Target(**request["target"]), seconds=request["seconds"], **request["arguments"]
            )
            said: dict[str, Any] = {"result": result}
        except Exception as error:
            said = {"error": first_line(error)}
        signal.setitimer(signal.ITIMER_REAL, 0)
        say(json.dumps(said))


if __name__ == "__main__":
    main()

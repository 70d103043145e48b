"""The driver's side of a run: the process that runs the stages, and its end, whatever ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Killed", "interruptible", "reproduce"]

GRACE_SECONDS = 10  # that an interrupted stage has to end by itself


class Killed(KeyboardInterrupt):
    """The run was stopped from outside.

    Arguments:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGINT, SIGTERM (batch systems) and SIGHUP (a lost terminal) raise `Killed` in the main thread.

    A signal that is ignored stays ignored, so that `nohup` works.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not for other threads
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Killed(number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.getsignal(number) for number in signals}
    for number, handler in former.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def reproduce(folder: Path) -> Generator[dict[str, Any], None, None]:
    """Bring all stages of a run folder up to date; see `pipeline.workflow.worker` for what is told meanwhile.

    Arguments:
        folder: a run folder that `prepare` made.

    Yields:
        What the process tells: a stage that is done, that waits, that failed.

    Raises:
        Killed: a signal came; the stages got it too, and are gone.
    """
    ours, theirs = socket.socketpair()
    environment = {name: value for name, value in os.environ.items() if name not in ("DVC_ROOT", "DVC_STAGE")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.workflow.worker", str(theirs.fileno())],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # signals come from here, in order, and reach whatever the stages started
            )
        try:
            with ours.makefile("r", encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            if ended is not None and ended.si_code != os.CLD_EXITED:  # killed: so is all that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        except BaseException as interruption:
            end(process, interruption.number if isinstance(interruption, Killed) else signal.SIGTERM)
            raise
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        yield {"stage": None, "failed": f"the process that runs the stages was killed by {name}"}
    elif process.returncode not in (0, 1):
        yield {"stage": None, "failed": f"the process that runs the stages exited with {process.returncode}"}


def end(process: subprocess.Popen[bytes], number: int) -> None:
    """End a process and all that it started: by a signal, then, after some seconds or a second signal, by SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

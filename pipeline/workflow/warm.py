"""A warm process: it imports the modules of the stages to come once, and forks each stage when its turn comes.

    python -m pipeline.workflow.warm DESCRIPTOR STAGE...

Most of a small stage is importing torch and transformers. The first stage of a run that has to be computed starts as
the plain command of `dvc.yaml`; meanwhile, on another core, this process imports what the stages after it need, and
each of those is then a fork of it that runs the same command's module. A run in which everything is cached starts none.

What is forked has only been imported: no thread of Python's, no CUDA, no seed, no setting of any stage. Where that
cannot be promised (another system than Linux, a module that fails as it is imported, `INTERPIPE_FORK=0`) the stage is a
plain command. The process dies with the worker that started it, and each stage with the process, by the kernel's hand.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["SWITCH", "WarmProcess", "forked_stages", "forks_here", "stage_of"]

SWITCH = "INTERPIPE_FORK"  # 0: each stage is a plain command
COMMAND = re.compile(r"python -m pipeline\.stages\.([a-z_]+)")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"  # torch then looks for devices without starting CUDA, which forbids a fork


def stage_of(command: str) -> str | None:
    """The stage that a command of `dvc.yaml` runs; None: it is another command."""
    found = COMMAND.fullmatch(command)
    return found[1] if found else None


def forks_here() -> bool:
    """Whether stages are forked: on Linux alone, for elsewhere libraries do not survive a fork."""
    return sys.platform == "linux" and os.environ.get(SWITCH) != "0"


class WarmProcess:
    """The worker's side of a warm process, which is started when a first stage has to be computed.

    Arguments:
        commands: of all stages, in order.
    """

    def __init__(self, commands: Sequence[str]) -> None:
        self.stages = [name for name in map(stage_of, commands) if name is not None]
        self.terminal = os.dup(2)  # while a stage runs, 2 is a pipe that ends with the stage
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: socket.socket | None = None

    def serves(self, name: str) -> bool:
        """Whether a stage can be forked; where no process is warm yet one begins to import what comes after it."""
        if self.process is not None:
            return self.connection is not None and name in self.coming
        after = self.stages[self.stages.index(name) + 1 :] if name in self.stages and forks_here() else []
        if after:
            self._start(after)
        return False

    def _start(self, stages: Sequence[str]) -> None:
        self.coming = list(stages)
        self.connection, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *stages],
                stdin=subprocess.DEVNULL,
                stdout=self.terminal,
                stderr=self.terminal,
                env={**os.environ, NVML_CHECK: "1"},
                pass_fds=[theirs.fileno()],
            )

    def run(self, name: str, folder: str, environment: Mapping[str, str]) -> int | None:
        """Run a stage in a fork; its output goes where this process's goes.

        Arguments:
            name: of the stage.
            folder: the run folder.
            environment: of the stage.

        Returns:
            The exit status as `subprocess` has it; that of the warm process where it was killed, and the stage with it.
            None: nothing ran, the stage is to be run as a plain command.
        """
        assert self.connection is not None and self.process is not None
        request = {"stage": name, "folder": os.path.abspath(folder), "environment": dict(environment)}
        content = json.dumps(request).encode()
        child = None
        with contextlib.suppress(ConnectionError), self.connection.makefile("rb") as answers:
            socket.send_fds(self.connection, [len(content).to_bytes(8, "big")], [1, 2])
            self.connection.sendall(content)
            for line in answers:
                answer = json.loads(line)
                if "status" in answer:
                    return answer["status"]
                if "process" not in answer:
                    return None
                child = answer["process"]
        self.connection.close()
        self.connection = None  # of a process that is gone; what is still to come are plain commands
        status = self.process.wait()
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return status

    def close(self) -> None:
        """End the process."""
        if self.connection is not None:
            self.connection.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        os.close(self.terminal)


@contextlib.contextmanager
def forked_stages(commands: Sequence[str]) -> Iterator[WarmProcess]:
    """Let DVC run stages as forks of a warm process, where they are stages of ours and one is warm.

    Arguments:
        commands: of all stages, in order.
    """
    from dvc.stage import run as dvc_run
    from dvc.stage.exceptions import StageCmdFailedError

    plain: Callable[..., None] = dvc_run._run
    warm = WarmProcess(commands)

    def run(executable: str | None, command: str, **options: Any) -> None:
        name = stage_of(command)
        if name is None or not warm.serves(name):
            return plain(executable, command, **options)
        former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as DVC does: the stage gets it too, and says so
        try:
            status = warm.run(name, options["cwd"], options["env"])
        finally:
            signal.signal(signal.SIGINT, former)
        if status is None:
            return plain(executable, command, **options)
        if status != 0:
            raise StageCmdFailedError(command, status)
        return None

    dvc_run._run = run
    try:
        yield warm
    finally:
        dvc_run._run = plain
        warm.close()


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next request, and the descriptors of its output.

    Raises:
        EOFError: the worker wants nothing more.
    """
    head, descriptors, _, _ = socket.recv_fds(connection, 8, 2)
    if len(head) < 8:
        raise EOFError
    length, content = int.from_bytes(head, "big"), b""
    while len(content) < length:
        block = connection.recv(length - len(content))
        if not block:
            raise EOFError
        content += block
    return json.loads(content), list(descriptors)


def serve(connection: socket.socket, stages: Sequence[str]) -> str:
    """Import, and fork stages as they are asked for.

    Arguments:
        connection: to the worker.
        stages: those that may be asked for, in order.

    Returns:
        In a fork: the name of the module to run. The warm process itself never returns.
    """
    waiting, sound = deque(stages), True
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # stages hear it; this process ends with the worker

    def import_next() -> None:
        nonlocal sound
        try:
            importlib.import_module(f"pipeline.stages.{waiting.popleft()}")
        except BaseException:  # the stage as a plain command says what it is
            sound = False
            waiting.clear()

    while True:
        if waiting and not select.select([connection], [], [], 0)[0]:
            import_next()
            continue
        try:
            request, output = _receive(connection)
        except (EOFError, ConnectionError):
            os._exit(0)
        while request["stage"] in waiting:
            import_next()
        parent = os.getpid()
        child = _fork() if sound else None
        if child == 0:
            signal.signal(signal.SIGINT, heard)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            _die_with(parent)
            connection.close()
            _become(request, output)
            return f"pipeline.stages.{request['stage']}"
        for descriptor in output:
            os.close(descriptor)
        if child is None:
            _answer(connection, plain=True)
            continue
        _answer(connection, process=child)
        while waiting and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            import_next()
        _, status = os.waitpid(child, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        _answer(connection, status=os.waitstatus_to_exitcode(status))


def _answer(connection: socket.socket, **answer: Any) -> None:
    with contextlib.suppress(ConnectionError):  # a worker that is gone ends this process at the next request
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _fork() -> int:
    """Fork with SIGINT held back, so that a stage that has not yet begun does not miss it."""
    gc.collect()
    gc.freeze()  # a collection in the fork would copy every page that it looks at
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    with warnings.catch_warnings():  # Python warns of threads; those of a BLAS library stop and start by themselves
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _become(request: Mapping[str, Any], output: Sequence[int]) -> None:
    """Make a fork what the plain command would be: its folder, its environment, its output, random numbers of its own.

    Arguments:
        request: from the worker.
        output: descriptors for standard output and standard error.
    """
    for descriptor, standard in zip(output, (1, 2), strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if random := sys.modules.get("numpy.random"):
        random.seed()  # Python's own does so itself; torch begins with a fixed seed in every process


def main() -> None:
    """Serve; in a fork, run the stage as `python -m` does, to the end of the interpreter."""
    _die_with(os.getppid())
    module = serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    sys.modules.pop(module, None)  # it was imported; as a command it is `__main__`
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

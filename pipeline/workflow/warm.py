"""A warm process: it imports what the stages of a run need once, and forks each stage when its turn comes.

    python -m pipeline.workflow.warm DESCRIPTOR        # the worker starts it where a first stage has to be computed

Most of a small stage is importing torch and transformers. A fork begins with these in its memory, and runs the same
module as the stage's command in `dvc.yaml` does; what it changes, it changes for itself. The warm process has only
imported: no thread of Python's, no CUDA, no operation of torch, no seed, no setting of any stage. Where that cannot be
promised (another system than Linux, a module that fails or starts a thread as it is imported, `INTERPIPE_FORK=0`) the
stage runs as its plain command. The kernel ends the process with the worker, and a stage with the process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from pipeline.fingerprints import load_stages

__all__ = ["SWITCH", "WarmProcess", "forked_stages"]

SWITCH = "INTERPIPE_FORK"  # 0: each stage is a plain command
COMMAND = re.compile(r"python -m (pipeline\.stages\.(?!code\b)\w+)")  # `code` needs nothing, and runs always
INTERRUPTED = 130  # the exit status of a stage that was interrupted
LENGTH_BYTES = 8
PR_SET_PDEATHSIG = 1  # linux/prctl.h
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"  # torch then looks for devices without starting CUDA, which forbids a fork


class WarmProcess:
    """The worker's side of a warm process; it is started when a first stage is to run."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: socket.socket | None = None

    def run(self, module: str, environment: Mapping[str, str]) -> int | None:
        """Run a stage in a fork; its output goes where this process's goes.

        Arguments:
            module: of the stage.
            environment: of the stage.

        Returns:
            The exit status as `subprocess` has it; that of the warm process where it was killed, and the stage with it.
            None: nothing ran, the stage is to be run as a plain command.
        """
        if self.connection is None:
            return None
        with contextlib.suppress(ConnectionError), ignored_interrupts():
            content = json.dumps({"module": module, "environment": dict(environment)}).encode()
            socket.send_fds(self.connection, [len(content).to_bytes(LENGTH_BYTES, "big")], [1, 2])
            self.connection.sendall(content)
            with self.connection.makefile("rb") as answers:
                if answer := answers.readline():
                    status: int | None = json.loads(answer)
                    return status
        assert self.process is not None
        self.connection.close()
        self.connection = None
        return status if (status := self.process.wait()) < 0 else None

    def start(self, folder: str, environment: Mapping[str, str]) -> None:
        """Start the process, where it has not been.

        Arguments:
            folder: the run folder.
            environment: of the first stage.
        """
        if self.process is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            self.connection = ours
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # while it serves a stage, the stage's
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        """End the process."""
        if self.connection is not None:
            self.connection.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Leave SIGINT to the stage, which gets it too, as DVC does while a command runs."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


@contextlib.contextmanager
def forked_stages() -> Iterator[WarmProcess]:
    """Let DVC run the stages of ours as forks of a warm process, where stages can be forked."""
    from dvc.stage import run as dvc_run
    from dvc.stage.exceptions import StageCmdFailedError

    plain: Callable[..., None] = dvc_run._run
    warm = WarmProcess()

    def run(executable: str | None, command: str, **options: Any) -> None:
        stage, status = COMMAND.fullmatch(command), None
        if stage is not None and sys.platform == "linux" and os.environ.get(SWITCH) != "0":
            warm.start(options["cwd"], options["env"])
            status = warm.run(stage[1], options["env"])
        if status is None:
            plain(executable, command, **options)
        elif status != 0:
            raise StageCmdFailedError(command, status)

    dvc_run._run = run
    try:
        yield warm
    finally:
        dvc_run._run = plain
        warm.close()


class _Forking:
    """The warm process itself.

    Arguments:
        connection: to the worker.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.begun_with = {name: value for name, value in os.environ.items() if name != NVML_CHECK}
        self.interrupted = False
        self.imported: set[str] = set()
        self.sound = True  # a fork of this process can run a stage

    def serve(self) -> str:
        """Import and fork as the worker asks for it.

        Returns:
            In a fork: the module to run. The warm process itself never returns.
        """
        os.environ[NVML_CHECK] = "1"
        heard = signal.signal(signal.SIGINT, self._interrupt)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        gc.disable()  # what is imported stays
        while True:
            try:
                request, output = self._request()
            except (EOFError, ConnectionError):
                os._exit(0)
            _write_to(*output)
            parent = os.getpid()
            self.sound = self.sound and self._imported(request["module"])
            child = _forked() if self.sound and not self.interrupted else None
            if child == 0:
                signal.signal(signal.SIGINT, heard)
                _die_with(parent)
                self.connection.close()
                os.close(nowhere)
                self._become(request["environment"])
                return str(request["module"])
            if child is not None:
                if self.interrupted:  # between the look at it and the fork
                    os.kill(child, signal.SIGINT)
                status: int | None = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            else:
                status = INTERRUPTED if self.interrupted else None
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            with contextlib.suppress(ConnectionError):  # the next request then ends this process
                self.connection.sendall(json.dumps(status).encode() + b"\n")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True

    def _request(self) -> tuple[dict[str, Any], list[int]]:
        """What the worker asks for, and the descriptors for standard output and standard error.

        Raises:
            EOFError: it wants nothing more.
        """
        head, descriptors, _, _ = socket.recv_fds(self.connection, LENGTH_BYTES, 2)
        with self.connection.makefile("rb") as stream:
            content = stream.read(int.from_bytes(head, "big"))
        if not content:
            raise EOFError
        return json.loads(content), list(descriptors)

    def _imported(self, module: str) -> bool:
        """Import a stage's module, and what it and the stages after it need; returns whether a fork can run it."""
        if _file_of(module) in self.imported:
            return True
        try:
            for name in needed(module):
                importlib.import_module(name)
                self.imported.add(name)
        except BaseException:  # the stage as a plain command says what it is
            return False
        return threading.active_count() == 1

    def _become(self, environment: Mapping[str, str]) -> None:
        """Make a fork what the plain command would be: its environment, random numbers of its own.

        Arguments:
            environment: of the stage; what the imports themselves have set stays.
        """
        for name in {NVML_CHECK, *(self.begun_with.keys() - environment.keys())}:
            os.environ.pop(name, None)
        changed = {name: value for name, value in environment.items() if self.begun_with.get(name) != value}
        os.environ.update(changed)
        if random := sys.modules.get("numpy.random"):
            random.seed()  # Python's own does so itself; torch begins with one fixed seed in every process
        gc.enable()


def _write_to(output: int, errors: int) -> None:
    """Make two descriptors standard output and standard error."""
    for descriptor, standard in ((output, 1), (errors, 2)):
        os.dup2(descriptor, standard)
        os.close(descriptor)


def _file_of(module: str) -> str:
    """The module that `python -m` runs: that of a package is its `__main__`."""
    spec = importlib.util.find_spec(module)
    return f"{module}.__main__" if spec is not None and spec.submodule_search_locations is not None else module


def needed(module: str) -> Iterator[str]:
    """A stage's module and those of the stages that follow in `dvc.yaml`, with their libraries: some are imported late.

    Where one stage is computed, those after it mostly are.
    """
    following = False
    for stage in load_stages().values():
        command = COMMAND.fullmatch(str(stage["cmd"]))
        following |= command is not None and command[1] == module
        if following and command is not None:
            yield _file_of(command[1])
            libraries = (stage.get("meta") or {}).get("libraries") or []
            yield from (name for name in libraries if importlib.util.find_spec(name) is not None)


def _forked() -> int:
    """Fork; returns 0 in the fork, else its process id."""
    gc.freeze()  # a collection in the fork would copy every page that it looks at
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():  # Python warns of threads; those of a BLAS library stop and start by themselves
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def main() -> None:
    """Serve; in a fork, run the stage as `python -m` does, to the end of the interpreter."""
    _die_with(os.getppid())
    module = _Forking(socket.socket(fileno=int(sys.argv[1]))).serve()
    sys.modules.pop(_file_of(module), None)  # it was imported; as a command it is `__main__`
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    # As the interpreter ends, but for the taking down of thousands of modules; a fault goes the long way.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

"""A stage in a run folder, killed (SIGKILL) at a chosen operation on the disk.

Kills itself before the NUMBER-th operation, from 0, whose line matches PATTERN. The lines are `open PATH` (for
writing), `rename FROM TO`, `remove PATH`, `rmdir PATH` and `mkdir PATH`; PATH is what the process names, which in the
removal of a folder is a bare name. A file that is opened for writing is left torn, as by a process that ends between
two writes.

Each stage is a process of its own, forked by one that has imported what stages import (`python -m
tests.pipeline.stages.killed`): forty of them are killed here, and imports would be most of what they do.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pyarrow import parquet

from pipeline.project import CODE

STAGES = ("tokenize", "collect", "tune", "lens", "evaluate", "report")
NAMES = {"os.rename": "rename", "os.remove": "remove", "os.rmdir": "rmdir", "os.mkdir": "mkdir"}
PATHS = (str, bytes, os.PathLike)  # and not the number of an open file


def run_stage(stage: str, folder: Path, kill: tuple[str, int] | None = None) -> None:
    """Run a stage as a process of its own, to its end or until it is killed.

    Arguments:
        stage: its name.
        folder: the run folder.
        kill: pattern and number of the operation at which it is killed; None: not at all.
    """
    temporary = folder.parent / "temporary"  # a killed process leaves its temporary files behind
    temporary.mkdir(exist_ok=True)
    said = temporary / "said.txt"
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps([stage, str(folder), kill, str(temporary), str(said)]) + "\n")
    server.stdin.flush()
    status = int(server.stdout.readline())
    expected = 0 if kill is None else -signal.SIGKILL
    assert status == expected, f"{stage}, {kill}: ended with {status}, {said.read_text(encoding='utf-8')}"


@cache
def _server() -> subprocess.Popen[str]:
    """The process that forks stages, of this test process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", __name__], cwd=CODE, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    atexit.register(server.communicate)  # its input ends, and it with it
    return server


def serve() -> None:
    """Fork a stage for each line of the standard input, and say how it ended."""
    for stage in STAGES:
        name = f"pipeline.stages.{stage}"
        for module in (name, f"{name}.__main__"):
            if module == name or hasattr(sys.modules[name], "__path__"):
                import_module(module)
        sys.modules.pop(f"{name}.__main__", None)  # it is run, not imported
        if not hasattr(sys.modules[name], "__path__"):
            del sys.modules[name]
    for line in sys.stdin:
        stage, folder, kill, temporary, said = json.loads(line)
        if (child := os.fork()) == 0:
            _run(stage, folder, kill, temporary, said)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(stage: str, folder: str, kill: tuple[str, int] | None, temporary: str, said: str) -> None:
    """Be the process of one stage, to its end."""
    status = 1
    try:
        with open(said, "w", encoding="utf-8") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        os.environ["TMPDIR"], tempfile.tempdir = temporary, None
        os.chdir(folder)
        sys.argv = [stage]
        if kill is not None:
            kill_at(*kill)
        runpy.run_module(f"pipeline.stages.{stage}", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def kill_at(pattern: str, number: int) -> None:
    """Watch this process's operations on the disk, and kill it at one of them.

    Arguments:
        pattern: regular expression, searched for in an operation's line.
        number: which of the operations that match, from 0.
    """
    wanted = re.compile(pattern)
    seen = 0

    def happens(line: str, torn: Any = None, truncate: bool = True) -> None:
        nonlocal seen
        if not wanted.search(line):
            return
        seen += 1
        if seen != number + 1:
            return
        if torn is not None:
            with open(torn, "wb" if truncate else "ab") as stream:
                stream.write(b"torn")
        os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in NAMES:
            paths = [os.fsdecode(a) for a in arguments if isinstance(a, PATHS)]
            happens(" ".join([NAMES[event], *paths]))
        elif event == "open" and isinstance(arguments[0], PATHS):
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR):
                happens(f"open {os.fsdecode(path)}", path, bool(flags & os.O_TRUNC))

    write_table = parquet.write_table

    def write(table: Any, where: Any, **options: Any) -> None:  # its files are opened where no audit sees it
        happens(f"open {where}", where)
        write_table(table, where, **options)

    parquet.write_table = write
    sys.addaudithook(audit)


if __name__ == "__main__":
    serve()

"""A stage in the current folder, killed (SIGKILL) at a chosen operation on the disk.

    python -m tests.pipeline.stages.killed STAGE PATTERN NUMBER

Kills itself before the NUMBER-th operation, from 0, whose line matches PATTERN. The lines are `open PATH` (for
writing), `rename FROM TO`, `remove PATH`, `rmdir PATH` and `mkdir PATH`; PATH is what the process names, which in the
removal of a folder is a bare name. A file that is opened for writing is left torn, as by a process that ends between
two writes.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from pyarrow import parquet

from pipeline.project import CODE

NAMES = {"os.rename": "rename", "os.remove": "remove", "os.rmdir": "rmdir", "os.mkdir": "mkdir"}
PATHS = (str, bytes, os.PathLike)  # and not the number of an open file


def run_stage(stage: str, folder: Path, kill: tuple[str, int] | None = None) -> None:
    """Run a stage as a process of its own, to its end or until it is killed.

    Arguments:
        stage: its name.
        folder: the run folder.
        kill: pattern and number of the operation at which it is killed; None: not at all.
    """
    module = [f"pipeline.stages.{stage}"] if kill is None else [__name__, stage, kill[0], str(kill[1])]
    temporary = folder.parent / "temporary"  # a killed process leaves its temporary files behind
    temporary.mkdir(exist_ok=True)
    # `-m` looks in the current folder first: a run folder's links lead to its repository, `tests` is this one's.
    environment = {**os.environ, "PYTHONPATH": str(CODE), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    done = subprocess.run(
        [sys.executable, "-m", *module], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    expected = 0 if kill is None else -signal.SIGKILL
    assert done.returncode == expected, f"{stage}, {kill}: ended with {done.returncode}, {done.stderr}"


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
    stage, pattern, number = sys.argv[1:]
    kill_at(pattern, int(number))
    runpy.run_module(f"pipeline.stages.{stage}", run_name="__main__", alter_sys=True)

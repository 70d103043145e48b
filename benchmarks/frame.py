"""What a run costs beside its model, here and in another state of the repository: `python -m benchmarks.frame OTHER`.

    git worktree add /tmp/before v1.0 && python -m benchmarks.frame /tmp/before

Copies of both run the default experiment in turns, each time once with an empty cache and once with a full one, after a
run that compiles their code and makes their database. Processor seconds, of all processes, say the same on a busy
machine; the ratios, here over there, are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.run import ROOT, fresh_copy

MADE = ("outputs", ".dvc/cache", ".dvc/tmp", ".interpipe/cache", ".interpipe/code", ".interpipe/scratch")


def costs(folder: Path) -> tuple[float, float]:
    """Run the default experiment; returns (processor seconds, seconds)."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    started = time.perf_counter()
    with (folder / "said.txt").open("w") as said:
        command = [sys.executable, "-m", "pipeline"]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)  # and all that it has waited for
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit((folder / "said.txt").read_text())
    return used.ru_utime + used.ru_stime, time.perf_counter() - started


def emptied(folder: Path) -> None:
    """Remove what runs have made, but for the database."""
    for name in MADE:
        for path in (folder / name).rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder / name, ignore_errors=True)


def main() -> None:
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description="What a run costs beside its model.")
    parser.add_argument("other", type=Path, help="folder of another state of the repository")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    ratios: dict[str, list[tuple[float, float]]] = {"empty cache": [], "full cache": []}
    with tempfile.TemporaryDirectory() as made:
        sides = {"here": Path(made, "here"), "there": Path(made, "there")}
        for side, root in (("here", ROOT), ("there", asked.other.resolve())):
            fresh_copy(sides[side], root)
            costs(sides[side])
        for _ in range(asked.rounds):
            for side in sides.values():
                emptied(side)
            for kind, found in ratios.items():
                here, there = costs(sides["here"]), costs(sides["there"])
                found.append((here[0] / there[0], here[1] / there[1]))
                print(f"{kind}: {here[0]:.1f} of {there[0]:.1f} processor seconds", file=sys.stderr, flush=True)
    for kind, found in ratios.items():
        processor, seconds = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{kind}: {processor:.2f} of the processor seconds, {seconds:.2f} of the seconds")


if __name__ == "__main__":
    main()

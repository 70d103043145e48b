"""What the README claims about the speed of a run: `make bench`, or `python -m benchmarks.run [--json FILE]`.

The default experiment runs twice in a fresh copy of the repository, so that the first run finds no cache and the second
one a full one; then the store's throughput is measured beside a raw `numpy.save` of the same data.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import store

ROOT = Path(__file__).resolve().parent.parent


def fresh_copy(folder: Path, root: Path = ROOT) -> None:
    """Copy what git tracks of a repository, and what it would track, into `folder`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    for file in filter(None, files):
        if (root / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / file, folder / file)


def timed_run(folder: Path) -> dict[str, Any]:
    """Run the default experiment; returns its `run.json` with the seconds of the whole command added."""
    before = set(folder.glob("outputs/*/*"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pipeline"], cwd=folder, env=environment, check=True)
    seconds = time.perf_counter() - started
    (run_folder,) = set(folder.glob("outputs/*/*")) - before
    return {**json.loads((run_folder / "run.json").read_text(encoding="utf-8")), "seconds": seconds}


def measure() -> dict[str, Any]:
    """All figures, in seconds, tokens per second and megabytes per second."""
    with tempfile.TemporaryDirectory() as folder:
        fresh_copy(Path(folder))
        cold, cached = timed_run(Path(folder)), timed_run(Path(folder))
    model_seconds = sum(stage.get("model_seconds", 0.0) for stage in cold["stages"].values())
    return {
        "cold_seconds": cold["seconds"],
        "cached_seconds": cached["seconds"],
        "model_seconds": model_seconds,
        "share_not_model": 1 - model_seconds / cold["seconds"],
        "stages": {
            name: {
                "seconds": stage["seconds"],
                "tokens_per_second": stage["tokens"] / stage["model_seconds"] if stage.get("model_seconds") else None,
                "cached_second_time": cached["stages"][name]["cached"],
            }
            for name, stage in cold["stages"].items()
        },
        "store": store.measure(),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [
        f"{'run':<12}{'seconds':>10}",
        f"{'cold':<12}{figures['cold_seconds']:>10.1f}",
        f"{'cached':<12}{figures['cached_seconds']:>10.1f}",
        f"not model time, cold: {figures['share_not_model']:.0%}",
        "",
        f"{'stage':<12}{'seconds':>10}{'tokens/s':>12}",
    ]
    for name, stage in figures["stages"].items():
        rate = stage["tokens_per_second"]
        lines.append(f"{name:<12}{stage['seconds']:>10.1f}{f'{rate:,.0f}' if rate else '':>12}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and the JSON after it or into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON here instead of printing it")
    arguments = parser.parse_args()
    figures = measure()
    print(table(figures))
    print(store.table(figures["store"]))
    text = json.dumps(figures, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()

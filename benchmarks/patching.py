"""How fast grids of patches are: `python -m benchmarks.patching [--transformer-lens PYTHON] [--json FILE]`.

The same work in one run, on the same weights (16 layers, 83 M parameters) and pairs (16 of 24 tokens): `resid_pre` at
all layers and positions, and `z` at all layers and heads, by TransformerLens 4.3's `get_act_patch_resid_pre` and
`get_act_patch_attn_head_out_all_pos` (in an environment of its own, made on first use, or by the Python that is given),
by plain nnsight, and by `interp.patching`. Each is a process of its own; times are processor time of one thread, after
a warm-up. Per example and cell, results are compared to 1e-4 before any time is quoted; the exit status is 1 where they
differ.

`--every N` lets the others run each N-th layer of a grid alone, and scales their times: all their cells cost the same.
`--differ` says in which tokens the prompts of a pair differ; before these, values are the same, and a cell that changes
nothing is not run by `interp`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("transformer_lens", "nnsight", "interpipe")
WORKS = ("resid_pre", "z")
PAIRS, LENGTH, TOLERANCE = 16, 24, 1e-4


def made(folder: Path, differ: Sequence[int]) -> None:
    """Write the model, the pairs and their answers."""
    import torch

    from benchmarks.lenses.model import SMALL, save

    save(folder / "model", SMALL)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(10, SMALL.vocabulary, (PAIRS, LENGTH), generator=generator)
    corrupted = clean.clone()
    corrupted[:, differ[0] : differ[1]] = torch.randint(
        10, SMALL.vocabulary, (PAIRS, differ[1] - differ[0]), generator=generator
    )
    answers = torch.randint(10, SMALL.vocabulary, (PAIRS, 2), generator=generator)
    np.savez(folder / "pairs.npz", clean=clean.numpy(), corrupted=corrupted.numpy(), answers=answers.numpy())


def run(python: str, tool: str, work: str, folder: Path, every: int) -> tuple[float, np.ndarray]:
    """One tool in a process of its own: seconds of the processor, and (example, layer, place) logit differences."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "benchmarks.patching_tools", tool, work, str(folder), str(every)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tool}, {work}:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1]), np.load(folder / f"{tool}.npy")


def measure(python: str, folder: Path, every: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of the table, tools in turns.

    Raises:
        SystemExit: results that differ.
    """
    rows = []
    for work in WORKS:
        seconds: dict[str, float] = {}
        found: dict[str, np.ndarray] = {}
        for _ in range(rounds):
            for tool in TOOLS:
                of_tool = python if tool == "transformer_lens" else sys.executable
                step = 1 if tool == "interpipe" else every
                taken, found[tool] = run(of_tool, tool, work, folder, step)
                layers = found["interpipe"].shape[1] if "interpipe" in found else 16
                taken *= layers / found[tool].shape[1]
                seconds[tool] = min(taken, seconds.get(tool, taken))
                print(f"{work}: {tool} {taken:.1f} s of the processor", file=sys.stderr, flush=True)
        ours = found["interpipe"][:, ::every]
        differences = {tool: float(np.abs(found[tool] - ours).max()) for tool in TOOLS[:-1]}
        wrong = {tool: difference for tool, difference in differences.items() if difference > TOLERANCE}
        if wrong:
            sys.exit(f"No time is quoted. {work}: results differ by {wrong}.")
        times = {tool: seconds[tool] / seconds["interpipe"] for tool in TOOLS[:-1]}
        cells = int(np.prod(found["interpipe"].shape[1:]))
        rows.append({"work": work, "cells": cells, "seconds": seconds, "times": times, "difference": differences})
    return rows


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a reader at a terminal."""
    lines = [f"{'grid':<12}{'cells':>7}{'interp':>9}{'TransformerLens':>18}{'nnsight':>10}   times ours"]
    for row in rows:
        seconds, times = row["seconds"], row["times"]
        lines.append(
            f"{row['work']:<12}{row['cells']:>7}{seconds['interpipe']:>9.1f}{seconds['transformer_lens']:>18.1f}"
            f"{seconds['nnsight']:>10.1f}   {times['transformer_lens']:.1f}x, {times['nnsight']:.1f}x"
        )
    return "\n".join(lines)


def processor() -> str:
    """The processor's name."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformer-lens", metavar="PYTHON", help="an interpreter that has TransformerLens 4.3")
    parser.add_argument("--every", type=int, default=1, help="the others run each so-many-th layer (1: all)")
    parser.add_argument("--rounds", type=int, default=1, help="repeats, of which the fastest counts (1)")
    parser.add_argument("--differ", type=int, nargs=2, default=[8, 12], help="tokens that pairs differ in (8 12)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    given = parser.parse_args()
    python = given.transformer_lens
    if python is None:
        from benchmarks.lenses.environments import python_for

        python = str(python_for("transformer_lens"))
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder), given.differ)
        rows = measure(python, Path(folder), given.every, given.rounds)
    first, stop = given.differ
    print(
        f"{processor()}, one thread, seconds of the processor; {PAIRS} pairs of {LENGTH} tokens that differ in tokens "
        f"{first} to {stop - 1}; results agree to {max(max(row['difference'].values()) for row in rows):.1g}"
    )
    print(text(rows))
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

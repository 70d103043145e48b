"""What the lenses cost: `python -m benchmarks.lenses` (`--help` lists the options).

The same work in one run, side by side, on the same weights: nnterp 1.3.0 with nnsight 0.6.3 and TransformerLens 4.3,
each in a virtual environment that is made on first use, plain nnsight, plain transformers with hooks, and Interpipe.
Each tool is a process of its own that keeps the model loaded; they run in turns, and the best time of each counts.
Results are compared first, probabilities to 1e-5: where they differ no time is quoted, and the exit status is 1.

`share of the floor` is the operations that the result needs (`benchmarks/lenses/floor.py`), divided by what this
machine multiplies matrices at, measured in between, divided by our time: at the rate of torch's own products, which all
tools have, and at that of the faster library, where Interpipe uses another (`interp.matmul`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.lenses.compare import DisagreementError
from benchmarks.lenses.growth import measure_growth
from benchmarks.lenses.measure import OURS, Options, Team, measure_works, say, shares
from benchmarks.lenses.model import SMALL
from benchmarks.lenses.table import growth_table, works_table
from benchmarks.lenses.tools import TOOLS
from benchmarks.lenses.works import KINDS, Work

OPERATORS = 12  # of a profile
ALL_SOURCES, ALL_TARGETS = (16, 64, 256), (16, 18, 64, 80)


def main() -> None:
    """Measure, print the tables, and the JSON into a file."""
    given = _arguments()
    sources, targets = (ALL_SOURCES, ALL_TARGETS) if given.all else (tuple(given.sources), tuple(given.targets))
    works = [
        Work(kind, count, length) for count in sources for kind in given.works for length in _lengths(kind, targets)
    ]
    try:
        if given.gpu:
            found = _gpu(works)
        else:
            clock = "cpu_seconds" if given.cpu_seconds else "seconds"
            options = Options(SMALL, given.threads, seconds=given.seconds, rounds=given.rounds, clock=clock)
            operators = OPERATORS if given.profile else 0
            found = measure(works, options, given.tools, growth=not given.no_growth, operators=operators)
            print(text(found))
    except DisagreementError as error:
        sys.exit(f"No time is quoted. {error}")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if any(what == OURS or what.endswith(f": {OURS}") for what in found.get("absent", ())):
        sys.exit("Some works failed in Interpipe; see above.")


def measure(
    works: list[Work], options: Options, tools: list[str], *, growth: bool = True, operators: int = 0
) -> dict[str, Any]:
    """All figures, as they go into the JSON.

    Arguments:
        works: what is measured.
        options: how.
        tools: with what; ours is among them always, and so is the reference.
        growth: also how our cost grows.
        operators: how many of the top operators of each work are listed, for our side; 0: no profile.
    """
    with ExitStack() as stack:
        team = Team.start(stack, options, [tool for tool in TOOLS if tool in tools or tool in (OURS, "transformers")])
        measured = measure_works(team, works)
        profiles = {work.name: _profile(team, work, operators) for work in works} if operators else {}
        grown = measure_growth(team, options) if growth and OURS in team.workers else []
    return {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "clock": options.clock,
        "matrix_gflops": {library: rate / 1e9 for library, rate in team.rates.items()},
        "works": [shares(figures, team.rates, options.clock) for figures in measured],
        "growth": grown,
        "profiles": profiles,
        "absent": team.absent,
    }


def text(found: dict[str, Any]) -> str:
    """The figures for a reader at a terminal."""
    clock = "seconds of the cores" if found["clock"] == "cpu_seconds" else "seconds of the clock"
    rates = ", ".join(f"{rate:.0f} ({library})" for library, rate in found["matrix_gflops"].items())
    parts = [
        f"{found['threads']} threads, matrix products at {rates} GFLOP/s, {clock}; "
        "all results agree with plain transformers.",
        works_table(found["works"]),
    ]
    if found["growth"]:
        parts.append(growth_table(found["growth"]))
    for name, operators in found["profiles"].items():
        lines = [
            f"  {line['share']:6.1%}  {line['name']} ({line['calls']} calls"
            + (f", {line['gflops']:.0f} GFLOP/s)" if line["gflops"] else ")")
            for line in operators
        ]
        parts.append("\n".join([f"{name}: where our time goes", *lines]))
    parts += [f"not measured: {what}: {reason}" for what, reason in found["absent"].items()]
    return "\n\n".join(parts)


def _gpu(works: list[Work]) -> dict[str, Any]:
    from benchmarks.lenses import gpu

    if not torch.cuda.is_available():
        sys.exit("--gpu: torch sees no CUDA device here.")
    found = gpu.measure_gpu(works)
    print(gpu.text(found))
    return found


def _profile(team: Team, work: Work, operators: int) -> list[dict[str, Any]]:
    folder = team.folder / "profile"
    team.inputs(work).save(folder)
    if OURS not in team.workers or f"{work.name}: {OURS}" in team.absent:
        return []
    say(f"{work.name}: profile")
    found = team.workers[OURS].ask({"do": "profile", "folder": str(folder), "operators": operators})
    operators_: list[dict[str, Any]] = found["operators"]
    return operators_


def _lengths(kind: str, targets: tuple[int, ...]) -> tuple[int, ...]:
    if kind == "generate":
        return (18,)
    return targets if kind.startswith("patchscope") else (0,)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, nargs="+", default=[64], help="source prompts (64)")
    parser.add_argument("--targets", type=int, nargs="+", default=[18, 80], help="tokens of a target prompt (18 80)")
    parser.add_argument("--all", action="store_true", help=f"sources {ALL_SOURCES}, targets {ALL_TARGETS}; hours")
    parser.add_argument(
        "--works", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of work; all, if not given"
    )
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), help="beside Interpipe; all")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each tool; every core, if not given")
    parser.add_argument("--seconds", type=float, default=20.0, help="of repeats, for each tool and work (20)")
    parser.add_argument("--rounds", type=int, default=5, help="repeats at most (5)")
    parser.add_argument("--cpu-seconds", action="store_true", help="quote the cores' time, on a machine that is busy")
    parser.add_argument("--profile", action="store_true", help="also list where our time goes")
    parser.add_argument("--gpu", action="store_true", help="instead: 7 B parameters in bfloat16 on a CUDA device")
    parser.add_argument("--no-growth", action="store_true", help="leave out how our cost grows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()

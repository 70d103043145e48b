"""How our own cost grows: with more prompts, with more layers; and memory with more prompts."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from benchmarks.lenses.measure import OURS, Options, Team, say
from benchmarks.lenses.works import Work

__all__ = ["measure_growth"]

FEW, TENFOLD = 16, 160
BATCH, SIXTEENFOLD = 64, 1024  # a whole batch, as the lenses take them, and sixteen
_KINDS = (("patchscope", 18), ("logit_lens", 0), ("collect", 0))


def measure_growth(team: Team, options: Options) -> list[dict[str, Any]]:
    """Figures by line: `what`, `ratio`, `at_most` (None: no limit is asked), and the two values that are compared."""
    found = []
    for kind, length in _KINDS:
        few, many = (Work(kind, sources, length) for sources in (FEW, TENFOLD))
        ratio = _ratio((team, few), (team, many), options)
        found.append({"what": f"{kind}: ten times the prompts", "at_most": 10.5, **ratio})
    for kind, length in _KINDS[:2]:
        low, high = (_peak(team, Work(kind, sources, length)) for sources in (BATCH, SIXTEENFOLD))
        if low and high:
            what = f"{kind}: peak memory in MB, from {BATCH} to {SIXTEENFOLD} prompts"
            found.append({"what": what, "at_most": None, "ratio": high / low, "values": [low / 1e6, high / 1e6]})
    doubled = replace(options, shape=replace(options.shape, layers=2 * options.shape.layers))
    with ExitStack() as stack:
        deep = Team.start(stack, doubled, [OURS])
        work = Work("patchscope", 64, 18)
        found.append(
            {"what": "patchscope: twice the layers", "at_most": 4.2, **_ratio((team, work), (deep, work), options)}
        )
    return found


def _ratio(small: tuple[Team, Work], large: tuple[Team, Work], options: Options) -> dict[str, Any]:
    """Best seconds of two works, run in turns."""
    given = [(team, team.inputs(work)) for team, work in (small, large)]
    best = [float("inf")] * 2
    for turn in range(options.rounds + 1):
        for index, (team, inputs) in enumerate(given):
            cost, _ = team.run(team.workers[OURS], inputs, f"growth-{index}")
            if turn:  # the first is for warming up
                best[index] = min(best[index], cost[options.clock])
    say(f"{large[1].name}, {large[0].options.shape.layers} layers: {best[1]:.2f} s against {best[0]:.2f} s")
    return {"ratio": best[1] / best[0], "values": best}


def _peak(team: Team, work: Work) -> float | None:
    """Peak bytes above the loaded model."""
    cost, _ = team.run(team.workers[OURS], team.inputs(work), "growth")
    peak: float | None = cost["peak_bytes"]
    return peak

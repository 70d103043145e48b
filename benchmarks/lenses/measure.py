"""Runs the works with all tools, in turns, and keeps the best time of each."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.lenses.compare import Readout, check
from benchmarks.lenses.environments import NoEnvironmentError
from benchmarks.lenses.floor import needed_operations
from benchmarks.lenses.model import Shape, save
from benchmarks.lenses.team import Worker, WorkerError
from benchmarks.lenses.tools import TOOLS
from benchmarks.lenses.works import Inputs, Result, Work, make_inputs

__all__ = ["OURS", "Options", "Team", "measure_works", "say"]

OURS, REFERENCE = "interpipe", "transformers"
MEMORY_SOURCES = 256


def say(line: str) -> None:
    """Progress, beside the table."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Options:
    """How to measure."""

    shape: Shape
    threads: int
    tools: Sequence[str] = tuple(TOOLS)
    seconds: float = 20.0  # for each tool and work: repeated while the runs so far are within
    rounds: int = 5  # repeated no more often than this
    clock: str = "seconds"  # or `cpu_seconds`


@dataclass
class Team:
    """The workers of one model, and the fastest matrix products seen while they worked."""

    folder: Path
    options: Options
    workers: dict[str, Worker]
    readout: Readout
    absent: dict[str, str] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, stack: ExitStack, options: Options, tools: Iterable[str]) -> Team:
        """Build the model and load it with each tool; one that cannot be had is left out with a line that says why."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save(folder / "model", options.shape)
        team = cls(folder, options, {}, Readout(folder / "model"))
        for tool in tools:
            try:
                team.workers[tool] = Worker(tool, folder / "model", options.threads)
            except (NoEnvironmentError, WorkerError) as error:
                team.leave_out(tool, error)
                continue
            stack.callback(team.workers[tool].close)
        return team

    def leave_out(self, what: str, error: Exception) -> None:
        """Note why a tool, or a work with it, is not measured."""
        self.absent[what] = str(error)
        say(getattr(error, "details", ""))
        say(f"not measured: {error}")

    def inputs(self, work: Work) -> Inputs:
        """A work's inputs; given latents are what the source prompts' last tokens hold."""
        inputs = make_inputs(work, self.options.shape.vocabulary)
        if work.kind != "patchscope":
            return inputs
        collector = self.workers.get(REFERENCE) or next(iter(self.workers.values()))
        _, found = self.run(collector, replace(inputs, kind="collect"), "latents")
        return replace(inputs, latents=found["activations"])

    def run(self, worker: Worker, inputs: Inputs, name: str) -> tuple[dict[str, Any], Result]:
        """One run, with inputs that are written for it."""
        folder = self.folder / name
        inputs.save(folder)
        return worker.run(folder, folder / f"{worker.tool}.safetensors")

    def measure_rate(self) -> None:
        """Multiply matrices, in one worker, with each library as fast as it goes; the best of the whole run counts."""
        found = next(iter(self.workers.values())).ask({"do": "rate", "shape": asdict(self.options.shape)})
        for library, rate in found.items():
            self.rates[library] = max(self.rates.get(library, 0.0), rate[self.options.clock])


def measure_work(team: Team, work: Work, tools: Sequence[str], *, rounds: int) -> dict[str, Any]:
    """One work with some tools, in turns.

    Everyone runs it once; results are compared; then those with time left run it again, in turns, so that what else the
    machine does hits all alike.

    Returns:
        By tool the figures of its best run (`seconds`, `cpu_seconds`), `peak_bytes` and `difference`; and what the
        result needs, `needed_operations`.

    Raises:
        DisagreementError: a tool computes something else than the reference.
    """
    inputs = team.inputs(work)
    runs: dict[str, list[dict[str, Any]]] = {}
    differences: dict[str, float] = {}
    reference: Result | None = None
    for turn in range(rounds):
        team.measure_rate()
        for tool in tools:
            spent = [run[team.options.clock] for run in runs.get(tool, [])]
            if turn and (not spent or sum(spent) + min(spent) > team.options.seconds):
                continue
            try:
                if not turn:
                    team.run(team.workers[tool], inputs.first(2), "warm-up")
                cost, result = team.run(team.workers[tool], inputs, "work")
            except WorkerError as error:
                team.leave_out(f"{work.name}: {tool}", error)
                continue
            runs.setdefault(tool, []).append(cost)
            say(f"{work.name}: {tool} {cost['seconds']:.2f} s, {cost['cpu_seconds']:.2f} s of the cores")
            if reference is None:
                reference = result
            differences[tool] = check(tool, result, reference, team.readout)
    return {
        **asdict(work),
        "name": work.name,
        "needed_operations": needed_operations(inputs, team.options.shape),
        "tools": {
            tool: {
                "seconds": min(cost["seconds"] for cost in costs),
                "cpu_seconds": min(cost["cpu_seconds"] for cost in costs),
                "peak_bytes": costs[0]["peak_bytes"],
                "runs": len(costs),
                "difference": differences[tool],
            }
            for tool, costs in runs.items()
        },
    }


def measure_works(team: Team, works: Sequence[Work]) -> list[dict[str, Any]]:
    """All works; the logit lens once more with many prompts, for its memory."""
    found = [measure_work(team, work, list(team.workers), rounds=team.options.rounds) for work in works]
    if any(work.kind == "logit_lens" for work in works):
        many = Work("logit_lens", MEMORY_SOURCES)
        if many not in works:
            found.append(measure_work(team, many, list(team.workers), rounds=1))
    return found


def shares(figures: dict[str, Any], rates: Mapping[str, float], clock: str) -> dict[str, Any]:
    """A work's figures with `times`, how many times the others' seconds are ours, and the shares of two floors.

    `share_of_floor` is that of torch's own products, which every tool of the table has; `share_of_fastest` that of the
    fastest library's.
    """
    tools: Mapping[str, Any] = figures["tools"]
    if OURS not in tools:
        return {**figures, "times": {}, "share_of_floor": None, "share_of_fastest": None}
    ours = tools[OURS][clock]
    return {
        **figures,
        "times": {tool: cost[clock] / ours for tool, cost in tools.items() if tool != OURS},
        "share_of_floor": figures["needed_operations"] / rates["torch"] / ours,
        "share_of_fastest": figures["needed_operations"] / max(rates.values()) / ours,
    }

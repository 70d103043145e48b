"""One tool in a process of its own: `python -m benchmarks.lenses.worker TOOL MODEL_FOLDER THREADS`.

Commands come in, a line of JSON each, and so do the answers go out; the model stays loaded between them. One command at
a time: while it runs, the other tools' workers wait for their input.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.lenses.memory import MemoryPeak
from benchmarks.lenses.tools import Tool, load
from benchmarks.lenses.works import Inputs, Result

__all__ = ["Cost", "measured"]


@dataclass(frozen=True)
class Cost:
    """What one run took: seconds of the clock, of all cores, and bytes above what the process held before."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int | None


def measured(tool: Tool, inputs: Inputs) -> tuple[Result, Cost]:
    """Run a work once."""
    work = getattr(tool, inputs.kind)
    with MemoryPeak() as peak:
        wall, cpu = time.perf_counter(), time.process_time()
        result: Result = work(inputs)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return result, Cost(wall, cpu, peak.bytes)


def _run(tool: Tool, folder: str, result: str) -> dict[str, Any]:
    """Run the work whose inputs lie in a folder; the result goes into a file."""
    found, cost = measured(tool, Inputs.load(Path(folder)))
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, result)
    return asdict(cost)


def _profile(tool: Tool, folder: str, operators: int) -> dict[str, Any]:
    """Where the time of a work goes: its top operators, by their own time, their shares, and how fast products are."""
    inputs = Inputs.load(Path(folder))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as profile:
        getattr(tool, inputs.kind)(inputs)
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {
        "operators": [
            {
                "name": event.key,
                "share": event.self_cpu_time_total / total,
                "calls": event.count,
                "gflops": event.flops / event.self_cpu_time_total / 1e3 if event.flops else None,  # per microsecond
            }
            for event in events[:operators]
        ]
    }


def _rate(tool: Tool, shape: dict[str, int]) -> dict[str, Any]:
    """By library, operations a second of matrix products here, by the clock and by the cores' seconds."""
    from benchmarks.lenses.floor import LIBRARIES, matrix_rate
    from benchmarks.lenses.model import Shape

    return {library: matrix_rate(Shape(**shape), library=library) for library in LIBRARIES}


_COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {"run": _run, "profile": _profile, "rate": _rate}


def _failure(error: Exception) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def main() -> None:
    name, folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a tool prints does not get among the answers

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        tool = load(name, folder)
    except Exception as error:
        answer(_failure(error))
        return
    answer({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer(_COMMANDS[command.pop("do")](tool, **command))
        except Exception as error:
            answer(_failure(error))


if __name__ == "__main__":
    main()

"""A model of 7 B parameters' shape on a GPU, with random weights in bfloat16: `python -m benchmarks.lenses --gpu`.

Time, peak device memory above the model, and the share of what the device multiplies matrices at, beside plain
transformers with hooks on the same weights, in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.lenses.compare import check
from benchmarks.lenses.floor import matrix_rate, needed_operations
from benchmarks.lenses.model import SEVEN_BILLION, Shape, build, tokenizer
from benchmarks.lenses.tools import Tool
from benchmarks.lenses.tools.with_interpipe import WithInterpipe
from benchmarks.lenses.tools.with_transformers import WithTransformers
from benchmarks.lenses.worker import measured
from benchmarks.lenses.works import Inputs, Result, Work, make_inputs

__all__ = ["measure_gpu", "text"]

# Of probabilities, in bfloat16: two orders of adding up part by about 2 % of a logit after 32 layers.
TOLERANCE = 0.1
ROUNDS = 3


@torch.no_grad()
def measure_gpu(
    works: Sequence[Work], *, shape: Shape = SEVEN_BILLION, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """Time and memory of some works on a device.

    Arguments:
        works: what is measured.
        shape, device, dtype: of the model.

    Returns:
        `device`, `matrix_gflops`, and a list `works`: `seconds` and `peak_bytes` by tool, `difference` of
        probabilities, `share_of_peak` of ours.

    Raises:
        DisagreementError: the two tools do not compute the same.
    """
    model = build(shape, dtype=dtype, device=device)
    tools: dict[str, Tool] = {
        "transformers": WithTransformers(model),
        "interpipe": WithInterpipe(model, tokenizer(shape.vocabulary)),
    }
    rate, found = 0.0, []
    for work in works:
        inputs = make_inputs(work, shape.vocabulary)
        if work.kind == "patchscope":
            latents = tools["transformers"].collect(replace(inputs, kind="collect"))["activations"]
            inputs = replace(inputs, latents=latents)
        rate = max(rate, matrix_rate(shape, device=device, dtype=dtype)["seconds"])
        found.append(_measure_work(tools, work, inputs, shape, _readout(model, device), device))
    for figures in found:
        seconds = figures["tools"]["interpipe"]["seconds"]
        figures["share_of_peak"] = figures["needed_operations"] / rate / seconds
    name = torch.cuda.get_device_name(device) if device != "cpu" else "cpu"
    return {"device": name, "dtype": str(dtype), "matrix_gflops": rate / 1e9, "works": found}


def text(found: dict[str, Any]) -> str:
    """The figures for a reader at a terminal."""
    lines = [
        f"{found['device']}, {found['dtype']}, matrix products at {found['matrix_gflops'] / 1000:.0f} TFLOP/s",
        f"{'work':<60}{'seconds':>9}{'transformers':>14}{'peak, MB':>10}{'theirs':>9}{'share':>7}",
    ]
    for work in found["works"]:
        ours, theirs = work["tools"]["interpipe"], work["tools"]["transformers"]
        peaks = ["-" if not tool["peak_bytes"] else f"{tool['peak_bytes'] / 1e6:.0f}" for tool in (ours, theirs)]
        lines.append(
            f"{work['name']:<60}{ours['seconds']:>9.3f}{theirs['seconds'] / ours['seconds']:>13.1f}x"
            f"{peaks[0]:>10}{peaks[1]:>9}{work['share_of_peak']:>7.2f}"
        )
    return "\n".join(lines)


def _measure_work(
    tools: dict[str, Tool], work: Work, inputs: Inputs, shape: Shape, readout: Callable[[Tensor], Tensor], device: str
) -> dict[str, Any]:
    best: dict[str, dict[str, Any]] = {}
    reference: Result | None = None
    difference = 0.0
    for turn in range(ROUNDS):
        for name, tool in tools.items():
            result, seconds, peak = _run(tool, inputs, device)
            reference = result if reference is None else reference
            if not turn:  # the first run warms up
                difference = check(name, result, reference, readout, tolerance=TOLERANCE)
            elif name not in best or seconds < best[name]["seconds"]:
                best[name] = {"seconds": seconds, "peak_bytes": peak}
    needed = needed_operations(inputs, shape)
    return {"name": work.name, "needed_operations": needed, "tools": best, "difference": difference}


def _run(tool: Tool, inputs: Inputs, device: str) -> tuple[Result, float, int | None]:
    if device == "cpu":
        result, cost = measured(tool, inputs)
        return result, cost.seconds, cost.peak_bytes
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result, cost = measured(tool, inputs)  # results are on the host, so the device is done
    return result, cost.seconds, torch.cuda.max_memory_allocated(device) - before


def _readout(model: Any, device: str) -> Callable[[Tensor], Tensor]:
    def read(hidden: Tensor) -> Tensor:
        return torch.softmax(model.lm_head(model.model.norm(hidden.to(device))).float(), dim=-1)

    return read

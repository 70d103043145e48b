"""The floor: the operations that a result needs, and how fast this machine multiplies matrices.

A multiplication and an addition are two operations. Counted are the matrix products of the layers, of attention and of
the readout; norms, rotary embeddings, softmax and the reductions of the readout are not, so a share of 1 cannot be
reached. What no result depends on is not counted: padding, a prefix a second time, a layer above the last one read, and
in the last layer all but the keys and values of the tokens that are not read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.lenses.model import Shape
from benchmarks.lenses.works import HEADER, Inputs

__all__ = ["LIBRARIES", "matrix_rate", "needed_operations"]


def _onednn(rows: Tensor, weight: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return found


# What multiplies matrices: torch as every tool of the table calls it, and the library that Interpipe calls where that
# one is faster (`interp.matmul`).
LIBRARIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch": linear}
if torch.backends.mkldnn.is_available():
    LIBRARIES["onednn"] = _onednn


def _layer(shape: Shape, positions: Iterable[int]) -> float:
    """A layer, whole, for tokens at these positions (from 0): each attends to those before it and to itself."""
    weights = 2 * (4 * shape.hidden**2 + 3 * shape.hidden * shape.mlp)
    return sum(weights + 4 * shape.hidden * (position + 1) for position in positions)


def _keys_and_values(shape: Shape, tokens: int) -> float:
    """What a token that is only attended to costs in the last layer that is needed."""
    return tokens * 2 * 2 * shape.hidden**2


def _readouts(shape: Shape, rows: int) -> float:
    return rows * 2 * shape.hidden * shape.vocabulary


def _collected(shape: Shape, length: int, start: int = 0) -> float:
    """Every layer's output at the last token of one prompt whose first `start` tokens are there already."""
    below = (shape.layers - 1) * _layer(shape, range(start, length))
    return below + _keys_and_values(shape, length - 1 - start) + _layer(shape, [length - 1])


def _walked(shape: Shape, sources: int, length: int) -> float:
    """Final hidden states of target prompts that are patched, at their last token, after each layer in turn.

    The tokens before are computed once, for all rows; a row patched after layer l runs through the layers above l.
    """
    prefix = (shape.layers - 1) * _layer(shape, range(length - 1)) + _keys_and_values(shape, length - 1)
    passes = sources * shape.layers * (shape.layers - 1) / 2
    return prefix + passes * _layer(shape, [length - 1])


def _generated(shape: Shape, sources: int, length: int, new: int) -> float:
    """Patched target prompts go on for `new` tokens: the first comes from the walk, each later one runs all layers.

    The patched token's keys and values in the layers up to the patched one are those of the clean prompt.
    """
    rows = sources * shape.layers
    steps = rows * shape.layers * _layer(shape, range(length, length + new - 1))
    clean = shape.layers * _layer(shape, [length - 1])
    return _walked(shape, sources, length) + clean + steps + _readouts(shape, rows * new)


def needed_operations(inputs: Inputs, shape: Shape) -> float:
    """Operations that the result of a work needs."""
    sources, length = len(inputs.source_ids), len(inputs.target_ids)
    collected = sum(_collected(shape, len(ids)) for ids in inputs.source_ids)
    read = _readouts(shape, sources * shape.layers)
    if inputs.kind == "patchscope":
        return _walked(shape, sources, length) + read
    if inputs.kind == "patchscope_end_to_end":
        return collected + _walked(shape, sources, length) + read
    if inputs.kind == "logit_lens":
        return collected + read
    if inputs.kind == "collect":
        return collected
    if inputs.kind == "few_shot":
        header = (shape.layers - 1) * _layer(shape, range(HEADER)) + _keys_and_values(shape, HEADER)
        return header + sum(_collected(shape, len(ids), start=HEADER) for ids in inputs.source_ids)
    return collected + _generated(shape, sources, length, inputs.new_tokens)


def matrix_rate(
    shape: Shape, *, library: str = "torch", device: str = "cpu", dtype: torch.dtype = torch.float32, repeats: int = 3
) -> dict[str, float]:
    """Operations a second of matrix products: the best over a large square and the model's own weights.

    Arguments:
        shape: the model, whose weights are multiplied with many tokens.
        library: one of `LIBRARIES`.
        device, dtype: where and in what.
        repeats: how often each is tried; the best counts.

    Returns:
        `seconds`: by the clock; `cpu_seconds`: by the time of all cores together.
    """
    square, rows, wanted = (2048, 1024, 2e9) if device == "cpu" else (8192, 8192, 1e13)  # tens of milliseconds
    sizes = [
        (square, square, square),
        (rows, shape.hidden, shape.hidden),
        (rows, shape.hidden, shape.mlp),
        (rows, shape.mlp, shape.hidden),
        (rows, shape.hidden, min(shape.vocabulary, 8 * shape.hidden)),  # a part of the head
    ]
    best = {"seconds": 0.0, "cpu_seconds": 0.0}
    multiply = LIBRARIES[library]
    for tokens, inner, columns in sizes:
        operations = 2.0 * tokens * inner * columns
        times = max(1, round(wanted / operations))
        left = torch.randn(tokens, inner, device=device, dtype=dtype)
        weight = torch.randn(columns, inner, device=device, dtype=dtype)
        for _ in range(repeats):
            _wait(device)
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(times):
                multiply(left, weight)
            _wait(device)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best["seconds"] = max(best["seconds"], operations * times / wall)
            best["cpu_seconds"] = max(best["cpu_seconds"], operations * times / cpu)
    return best


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()

"""Interventions by hand, inside a trace: skip layers, steer the residual stream. As data: `interp.interventions`.

Steering adds a vector to the residual stream (Turner et al. 2023, "Activation Addition", arXiv 2308.10248).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.sites import parse_layers

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["skip_layers", "steer"]

Indices = int | Sequence[int] | Tensor


def skip_layers(
    model: StandardizedTransformer, start_layer: int, end_layer: int, skip_with: Tensor | None = None
) -> None:
    """Skip layers, inside a trace: the residual stream after the last of them is what entered the first.

    With `skip_with`, a residual stream saved before, a forward pass starts at a later layer:
    `skip_layers(model, 0, 5, saved)` goes on at layer 6. With several invokes, each has to skip the same layers.

    Arguments:
        model: the model.
        start_layer, end_layer: the first and the last layer that is skipped; from the end where negative.
        skip_with: (batch, position, hidden), what every skipped layer gives; None: what enters the first.

    Raises:
        InterpError: a layer that the model does not have, an end before the start, or a value of another shape.
    """
    first, last = (_checked(model, layer) for layer in (start_layer, end_layer))
    if last < first:
        raise InterpError(f"skip_layers: expected start_layer <= end_layer, got {start_layer} and {end_layer}.")
    if skip_with is not None and (skip_with.dim() != 3 or skip_with.shape[-1] != model.hidden_size):
        raise InterpError(
            f"skip_layers: expected skip_with (batch, position, {model.hidden_size}), got shape "
            f"{tuple(skip_with.shape)}."
        )
    value = model.layers_input[first] if skip_with is None else skip_with.to(model.device, model.dtype)
    for layer in range(first, last + 1):
        model.layer(layer).skip((value, None) if model.architecture.layer_returns_tuple else value)


def _checked(model: StandardizedTransformer, layer: int) -> int:
    if not -model.num_layers <= layer < model.num_layers:
        raise InterpError(
            f"skip_layers: layer {layer} is out of range. The model has {model.num_layers} layers, 0 to "
            f"{model.num_layers - 1}."
        )
    return layer % model.num_layers


def steer(
    model: StandardizedTransformer,
    layers: int | Sequence[int],
    steering_vector: Tensor,
    factor: float = 1.0,
    *,
    token_positions: Indices | None = None,
    batch_index: Indices | None = None,
) -> None:
    """Add `factor * steering_vector` to the residual stream after layers, inside a trace.

    The stream is replaced, not changed in place: what was read from it before stays as it was.

    Arguments:
        model: the model.
        layers: one or several, in any order; from the end where negative.
        steering_vector: (hidden,), or what broadcasts to the steered part of (batch, position, hidden).
        factor: its multiple.
        token_positions: the positions that are steered, in the padded batch; None: all.
        batch_index: the rows that are steered; None: all. A list here and one in `token_positions` are pairs of the
            same length: row `batch_index[i]` is steered at `token_positions[i]`.

    Raises:
        InterpError: a layer that the model does not have, or a vector whose last axis is not `hidden_size`.
    """
    if steering_vector.shape[-1:] != (model.hidden_size,):
        raise InterpError(
            f"steering_vector: expected (..., {model.hidden_size}), got shape {tuple(steering_vector.shape)}."
        )
    rows = slice(None) if batch_index is None else _index(batch_index)
    columns = slice(None) if token_positions is None else _index(token_positions)
    for layer in parse_layers(layers, model.num_layers):
        steered = model.layers_output[layer].clone()
        steered[rows, columns] += factor * steering_vector.to(steered)
        model.layers_output[layer] = steered


def _index(indices: Indices) -> int | Tensor:
    return indices if isinstance(indices, int) else torch.as_tensor(indices, device="cpu")

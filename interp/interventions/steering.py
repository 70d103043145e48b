"""Steering: a vector added to the residual stream (Turner et al. 2023, "Activation Addition", arXiv 2308.10248)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.sites import parse_layers

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["steer"]

Indices = int | Sequence[int] | Tensor


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
        InterpError: a layer that the model has not, or a vector whose last axis is not `hidden_size`.
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

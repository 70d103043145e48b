"""Layers that are not computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["skip_layers"]


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
        InterpError: a layer that the model has not, an end before the start, or a value of another shape.
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

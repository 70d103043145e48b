"""A value of every layer, read and written by index inside a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from interp.errors import InterpError

__all__ = ["LayerValues", "fitted", "read_place", "write_place"]


def read_place(envoy: Any, side: str) -> Tensor:
    """The hidden state that a module takes or gives: a tensor, or the first of a tuple.

    Arguments:
        envoy: the module, inside a trace.
        side: `input` or `output`.

    Returns:
        The model's live tensor (batch, position, hidden).
    """
    value = envoy.input if side == "input" else envoy.output
    return value if isinstance(value, Tensor) else value[0]


def write_place(envoy: Any, side: str, value: Tensor, name: str) -> None:
    """Replace what `read_place` reads, keeping the rest of a tuple.

    Arguments:
        envoy: the module, inside a trace.
        side: `input` or `output`.
        value: of the same shape as what is there; moved to its device and dtype.
        name: what the user called the place, for messages.

    Raises:
        InterpError: not a tensor, or of another shape.
    """
    if side == "input":
        envoy.input = fitted(value, envoy.input, name)
        return
    whole = envoy.output
    if isinstance(whole, Tensor):
        envoy.output = fitted(value, whole, name)
    else:
        envoy.output = type(whole)((fitted(value, whole[0], name), *whole[1:]))


def fitted(value: Tensor, live: Tensor, name: str) -> Tensor:
    """A written value on the device and in the dtype of what it replaces; refused where its shape is another."""
    if not isinstance(value, Tensor) or value.shape != live.shape:
        came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(type(value))
        raise InterpError(
            f"write {name}: expected a tensor of shape {tuple(live.shape)}, got {came}. To change a part, read the "
            "whole, change the part, and write the whole."
        )
    return value.to(device=live.device, dtype=live.dtype)


class LayerValues:
    """`values[layer]` reads and `values[layer] = tensor` writes one hidden state of a layer inside a trace.

    Arguments:
        envoys: layer -> its module.
        num_layers: the model's depth.
        side: `input` or `output` of that module.
        name: what this is called, for messages.
    """

    def __init__(self, envoys: Callable[[int], Any], num_layers: int, side: str, name: str) -> None:
        self._envoys = envoys
        self._num_layers = num_layers
        self._side = side
        self._name = name

    def __len__(self) -> int:
        return self._num_layers

    def __getitem__(self, layer: int) -> Tensor:
        return read_place(self._envoys(self._checked(layer)), self._side)

    def __setitem__(self, layer: int, value: Tensor) -> None:
        write_place(self._envoys(self._checked(layer)), self._side, value, f"{self._name}[{layer}]")

    def _checked(self, layer: int) -> int:
        if not -self._num_layers <= layer < self._num_layers:
            raise InterpError(
                f"{self._name}[{layer}]: the model has {self._num_layers} layers, 0 to {self._num_layers - 1}."
            )
        return layer % self._num_layers

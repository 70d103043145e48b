"""A value of every layer, read and written by index inside a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor

from interp.errors import InterpError
from interp.model.places import Place

__all__ = ["LayerModules", "LayerValues"]

Item = TypeVar("Item")


class _ByLayer(Generic[Item]):
    def __init__(self, items: Callable[[int], Item], num_layers: int, name: str) -> None:
        self._items = items
        self._num_layers = num_layers
        self._name = name

    def __len__(self) -> int:
        return self._num_layers

    def _item(self, layer: int) -> Item:
        if not -self._num_layers <= layer < self._num_layers:
            raise InterpError(
                f"{self._name}[{layer}]: the model has {self._num_layers} layers, 0 to {self._num_layers - 1}."
            )
        return self._items(layer % self._num_layers)


class LayerValues(_ByLayer[Place]):
    """`values[layer]` reads and `values[layer] = tensor` writes one value of a layer inside a trace.

    Arguments:
        items: layer -> the place of the value.
        num_layers: the model's depth.
        name: what this is called, for messages.
    """

    def __getitem__(self, layer: int) -> Tensor:
        return self._item(layer).read()

    def __setitem__(self, layer: int, value: Tensor) -> None:
        self._item(layer).write(value)

    __call__ = __getitem__


class LayerModules(_ByLayer[Any]):
    """`modules[layer]`: one module of each layer, an nnsight envoy.

    Arguments:
        items: layer -> the envoy.
        num_layers: the model's depth.
        name: what this is called, for messages.
    """

    def __getitem__(self, layer: int) -> Any:
        return self._item(layer)

    def __setitem__(self, layer: int, value: object) -> None:
        raise InterpError(f"{self._name}[{layer}] is a module. Set what it returns: {self._name}_output[{layer}] = ...")

    def __iter__(self) -> Iterator[Any]:
        return (self[layer] for layer in range(len(self)))

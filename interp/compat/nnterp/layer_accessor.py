"""nnterp's `LayerAccessor`: one value, or module, of every layer by index."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

from torch import Tensor

from interp.errors import InterpError
from interp.model import StandardizedTransformer as _Base
from interp.model.accessors import LayerValues
from interp.model.places import ModulePlace, Place

__all__ = ["IOType", "LayerAccessor"]


class IOType(Enum):
    """Which side of a module."""

    INPUT = "input"
    OUTPUT = "output"


# What interp calls them; it knows families in which no module is the MLP, and says why a layer has no attention.
_OF_INTERP = {
    (None, IOType.INPUT): "layers_input",
    (None, IOType.OUTPUT): "layers_output",
    ("self_attn", None): "attentions",
    ("self_attn", IOType.INPUT): "attentions_input",
    ("self_attn", IOType.OUTPUT): "attentions_output",
    ("mlp", None): "mlps",
    ("mlp", IOType.INPUT): "mlps_input",
    ("mlp", IOType.OUTPUT): "mlps_output",
}


class LayerAccessor(LayerValues):
    """`accessor[layer]` or `accessor(layer)` reads and `accessor[layer] = tensor` writes, inside a trace.

    What is read is the hidden state alone, also where the module returns a tuple; writing keeps the rest of the tuple.

    Arguments:
        model: an nnsight model with `layers`.
        attr_name: the module in a layer; None: the layer itself.
        io_type: which side of it; None: the module, which cannot be written.
        returns_tuple: of nnterp 1.0: what is said of the module before it is first read.
    """

    def __init__(
        self, model: Any, attr_name: str | None, io_type: IOType | None, returns_tuple: bool | None = None
    ) -> None:
        self.model = model
        self.attr_name = attr_name
        self.io_type = io_type
        self._assumed = returns_tuple
        name = f"{attr_name or 'layers'}_{io_type.value}" if io_type else attr_name or "layers"
        self._standard = _OF_INTERP.get((attr_name, io_type), name)
        LayerValues.__init__(self, self._place, len(model.layers), self._standard)

    def get_module(self, layer: int) -> Any:
        """The module of one layer, an nnsight envoy."""
        envoy = self.model.layers[layer]
        return envoy if self.attr_name is None else envoy.get(self.attr_name)

    def _place(self, layer: int) -> Place:
        side = None if self.io_type is None else self.io_type.value
        assert side is not None
        if isinstance(self.model, _Base) and (self.attr_name, self.io_type) in _OF_INTERP:
            values: LayerValues = getattr(_Base, self._standard).fget(self.model)
            return values._item(layer)
        return ModulePlace(self.get_module(layer), side, f"{self._standard}[{layer}]")

    def __getitem__(self, layer: int) -> Any:
        if self.io_type is None:
            return self._module(layer)
        place = self._item(layer)
        if self.io_type is IOType.OUTPUT and isinstance(place, ModulePlace):
            self._seen[self._standard] = isinstance(place.envoy.output, tuple)
        return place.read()

    __call__ = __getitem__

    def _module(self, layer: int) -> Any:
        if isinstance(self.model, _Base) and (self.attr_name, None) in _OF_INTERP:
            return getattr(_Base, self._standard).fget(self.model)[layer]
        return self.get_module(layer)

    def __setitem__(self, layer: int, value: Tensor) -> None:
        if self.io_type is None:
            raise InterpError(
                f"{self._standard}[{layer}] is a module. Set what it returns: {self._standard}_output[{layer}] = ..."
            )
        LayerValues.__setitem__(self, layer, value)

    def __iter__(self) -> Iterator[Any]:
        return (self[layer] for layer in range(len(self)))

    @property
    def returns_tuple(self) -> bool | None:
        """Whether the module returns a tuple, as seen at the last read; None before the first."""
        return self._seen.get(self._standard, self._assumed)

    @property
    def _seen(self) -> dict[str, bool]:
        """Kept with the model, because accessors come and go."""
        seen: dict[str, bool] = self.model.__dict__.setdefault("_returned_tuples", {})
        return seen

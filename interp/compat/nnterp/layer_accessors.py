"""nnterp's accessors: a value or module of every layer by index, and attention probabilities with their sources."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import nnsight
import torch
from torch import Tensor

from interp.attention.interface import routing_module
from interp.attention.operations import operations_of
from interp.compat.nnterp.utils import RenamingError, display_markdown, dummy_inputs, is_notebook, try_with_scan
from interp.errors import InterpError
from interp.model import StandardizedTransformer as _Base
from interp.model.accessors import LayerValues
from interp.model.places import ModulePlace, Place

__all__ = [
    "AttentionProbabilitiesAccessor",
    "AttnProbFunction",
    "IOType",
    "LayerAccessor",
    "bloom_attention_prob_source",
    "default_attention_prob_source",
    "gpt2_attention_prob_source",
    "gptj_attention_prob_source",
]


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


class AttnProbFunction(ABC):
    """Where the attention pattern is computed in an attention module, for `RenameConfig(attn_prob_source=...)`."""

    @abstractmethod
    def get_attention_prob_source(self, attention_module: Any, return_module_source: bool = False) -> Any:
        """The nnsight operation whose output is the pattern.

        Arguments:
            attention_module: the envoy of the attention module.
            return_module_source: give the source that the operation is in, in its place.
        """

    def __call__(self, attention_module: Any, return_module_source: bool = False) -> Any:
        return self.get_attention_prob_source(attention_module, return_module_source)


def default_attention_prob_source(attention_module: Any, return_module_source: bool = False) -> Any:
    """Dropout inside the family's eager attention function, for families that go through `AttentionInterface`."""
    function = attention_module.source.attention_interface_1.source
    return function if return_module_source else function.nn_functional_dropout_0


gpt2_attention_prob_source = default_attention_prob_source


def bloom_attention_prob_source(attention_module: Any, return_module_source: bool = False) -> Any:
    """Dropout inside Bloom's attention."""
    return attention_module.source if return_module_source else attention_module.source.self_attention_dropout_0


def gptj_attention_prob_source(attention_module: Any, return_module_source: bool = False) -> Any:
    """Dropout inside GPT-J's `_attn`."""
    method = attention_module.source.self__attn_0.source
    return method if return_module_source else method.self_attn_dropout_0


class AttentionProbabilitiesAccessor(LayerValues):
    """`probabilities[layer]`: the attention pattern (batch, head, query, key), read and written inside a trace.

    They are had in every family that computes them, whatever attention implementation the model was loaded with, and
    cost nothing where they are not asked for; so they are on from the start.

    Arguments:
        model: a `StandardizedTransformer`.
        rename_config: its `attn_prob_source`, where the family's own way is not right.
        initialized_with_enable: of nnterp, and of no use here.
    """

    def __init__(self, model: _Base, rename_config: Any = None, initialized_with_enable: bool = False) -> None:
        values: LayerValues = _Base.attention_probabilities.fget(model)  # type: ignore[attr-defined]
        LayerValues.__init__(self, values._item, model.num_layers, "attention_probabilities")
        self.model = model
        self.initialized_with_enable = initialized_with_enable
        self.source_attr: Callable[..., Any] | None = getattr(rename_config, "attn_prob_source", None)

    @property
    def enabled(self) -> bool:
        """Whether they can be read: the model has them, and `disable` was not called."""
        state = self.model.__dict__
        return not state.get("_attention_disabled", False) and any(
            self.model.has(f"pattern.{layer}") for layer in range(self.model.num_layers)
        )

    def disable(self) -> None:
        """Refuse to read or write them from now on."""
        self.model.__dict__["_attention_disabled"] = True

    def _check_enabled(self) -> None:
        if self.model.__dict__.get("_attention_disabled", False):
            raise RenamingError("attention probabilities were switched off for this model with disable().")

    def __getitem__(self, layer: int) -> Tensor:
        self._check_enabled()
        return LayerValues.__getitem__(self, layer)

    __call__ = __getitem__

    def __setitem__(self, layer: int, value: Tensor) -> None:
        self._check_enabled()
        LayerValues.__setitem__(self, layer, value)

    def check_source(self, layer: int = 0, allow_dispatch: bool = True, use_trace: bool = True) -> None:
        """Check the pattern of a layer on three tokens: its shape, that its rows sum to 1, that the logits hang on it.

        Arguments:
            layer: the layer.
            allow_dispatch: of nnterp, and of no use here: the weights are loaded.
            use_trace: False: check the shape alone.

        Raises:
            RenamingError: it is not an attention pattern, with what came.
        """
        pattern: Tensor
        with torch.no_grad(), self.model.trace(dummy_inputs()):
            pattern = nnsight.save(self[layer].clone())
            logits = nnsight.save(self.model.logits.clone())
        self._check_shape(pattern)
        if not use_trace:
            return
        sums = pattern.float().sum(-1)
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-2) and not bool((sums < 1).all()):  # sinks take some
            raise RenamingError(f"layer {layer}: expected rows that sum to 1, got {sums.flatten()[:3].tolist()}.")
        with torch.no_grad(), self.model.trace(dummy_inputs()):
            other = self[layer].flip(-1) + 1
            self[layer] = other / other.sum(-1, keepdim=True)
            changed = nnsight.save(self.model.logits.clone())
        if torch.allclose(changed, logits):
            raise RenamingError(f"layer {layer}: other attention probabilities leave the logits as they are.")

    def _check_shape(self, pattern: Tensor) -> None:
        rows, positions = dummy_inputs()["input_ids"].shape
        expected = (rows, self.model.num_heads, positions, positions)
        if tuple(pattern.shape) != expected:
            raise RenamingError(f"expected attention probabilities of shape {expected}, got {tuple(pattern.shape)}.")

    def print_source(self, layer: int = 0, allow_dispatch: bool = True) -> None:
        """Print the code in which the attention probabilities of a layer are computed, and that of the module.

        Arguments:
            layer: the layer.
            allow_dispatch: as in `try_with_scan`.
        """
        where, module = self._sources(layer, allow_dispatch)
        if is_notebook():
            display_markdown(f"## Attention probabilities\n```py\n{where}\n```\n\n## Module\n```py\n{module}\n```")
        else:
            print(f"Attention probabilities are computed in:\n{where}\n\nin the module:\n{module}")

    def _sources(self, layer: int, allow_dispatch: bool) -> tuple[str, str]:
        """The code of the pattern, and of the forward pass that it is a part of."""
        attention = self.model.attentions[layer]
        source = self.source_attr
        if source is not None:
            read: list[str] = []

            def look() -> None:
                read.append(str(source(attention)))
                whole = source(attention, return_module_source=True) if isinstance(source, AttnProbFunction) else None
                read.append(str(attention.source if whole is None else whole))

            error = RenamingError("attn_prob_source cannot be reached in this model.")
            try_with_scan(self.model, look, error, allow_dispatch, warn_if_scan_fails=False)
            return read[-2], read[-1]
        by_operation = operations_of(self.model._module.config.model_type, attention)
        if by_operation is not None:
            envoy, operations, missing = by_operation
            where = f"operation {operations['pattern'].name}" if "pattern" in operations else missing
            return where, inspect.getsource(type(envoy._module).forward)
        module = attention._module.get_submodule(routing_module(attention._module) or "")
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        where = "the attention function" if eager is None else inspect.getsource(eager)
        return where, inspect.getsource(inspect.unwrap(type(module).forward))

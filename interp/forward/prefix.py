"""A prompt's beginning, computed once: its keys and values, frozen, from which any number of continuations go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp import passes
from interp.forward.cascade import Shared
from interp.forward.running import by_name, run_layers
from interp.forward.sharing import hold

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Call", "FrozenLayer", "FrozenPrefix", "calls_of", "repeated"]


class FrozenLayer(DynamicLayer):
    """One layer's keys and values of a prefix: read by a continuation, never written.

    The prefix's rows are repeated for a continuation with a multiple of them: row i of the continuation goes on from
    row i modulo the prefix's.
    """

    module: nn.Module  # the model that it is of

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = key_states.shape[0]
        if not self.is_initialized:  # an empty prefix
            return key_states, value_states
        if hold(self.module, Shared(self.keys, self.values)):
            return key_states, value_states
        return (
            torch.cat([repeated(self.keys, rows), key_states], dim=-2),
            torch.cat([repeated(self.values, rows), value_states], dim=-2),
        )


def repeated(states: Tensor, rows: int) -> Tensor:
    """(prompt, heads, token, size) for a multiple of the prompts: row i is that of prompt i modulo their number."""
    own = states.shape[0]
    if own == 1:
        return states.expand(rows, *states.shape[1:])
    return states.repeat(rows // own, 1, 1, 1)


@dataclass(frozen=True)
class FrozenPrefix:
    """Keys and values of the first tokens of some prompts.

    Arguments:
        cache: what layers are given as `past_key_values`.
        length: how many tokens.
    """

    cache: DynamicCache
    length: int

    @classmethod
    @torch.no_grad()
    def of(cls, model: StandardizedTransformer, input_ids: Tensor) -> FrozenPrefix:
        """Run the prefix of some prompts, all equally long.

        Arguments:
            model: the model.
            input_ids: (row, position), without padding; no position at all is a prefix too.
        """
        cache = DynamicCache()  # without the config: a layer with a window would forget what lies before it
        if input_ids.shape[1]:
            run_layers(model, input_ids, cache, 0)
            for layer in cache.layers:
                layer.__class__ = FrozenLayer
        else:
            cache.layers = [FrozenLayer() for _ in range(model.num_layers)]
        for frozen in cache.layers:
            frozen.module = model._module
        return cls(cache, input_ids.shape[1])

    @property
    def layers(self) -> list[FrozenLayer]:
        """What the cache holds of each layer."""
        return [layer for layer in self.cache.layers if isinstance(layer, FrozenLayer)]


@dataclass(frozen=True)
class Call:
    """How the model calls one layer, and what that gives.

    Arguments:
        keywords: what it is given beside the residual stream, by name, good for any number of rows.
        input, output: (row, position, hidden), the residual stream before and after it.
    """

    keywords: dict[str, Any]
    input: Tensor
    output: Tensor


@torch.no_grad()
def calls_of(model: StandardizedTransformer, prefix: FrozenPrefix, input_ids: Tensor) -> list[Call]:
    """Run what follows a prefix, and keep how each layer is called.

    Arguments:
        model: the model.
        prefix: of the same rows.
        input_ids: (row, position), the tokens that follow.

    Returns:
        A call for each layer.
    """
    given: list[tuple[dict[str, Any], Tensor]] = []
    outputs: list[Tensor] = []
    rows = input_ids.shape[0]
    known: dict[int, Tensor] = {}
    arguments: list[list[tuple[str, Any]]] = []

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (_, hidden), *rest = by_name(layer, args, kwargs).items()
        arguments.append(rest)  # a tensor that is let go could leave its id to another
        given.append((_for_any_rows(dict(rest), rows, known), hidden))

    def after(_: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output if isinstance(output, Tensor) else output[0])

    layers = [model.layer(index)._module for index in range(model.num_layers)]
    hooks = [passes.before(layer, before) for layer in layers]
    hooks += [passes.after(layer, after) for layer in layers]
    try:
        run_layers(model, input_ids, prefix.cache, prefix.length)
    finally:
        for hook in hooks:
            hook.remove()
    return [Call(*call, output) for call, output in zip(given, outputs, strict=True)]


def _for_any_rows(value: Any, rows: int, known: dict[int, Tensor]) -> Any:
    """Arguments of a layer as they are for one row: without padding all rows have the same, which broadcast.

    A first axis that is as long by chance, such as one of heads, does not hold the same throughout.

    Arguments:
        value: of an argument.
        rows: how many there are.
        known: by the `id` of a tensor, what it became: all layers are given the same few.
    """
    if isinstance(value, Tensor):
        if id(value) not in known:
            by_row = rows > 1 and value.dim() > 1 and value.shape[0] == rows
            known[id(value)] = value[:1] if by_row and bool((value == value[:1]).all()) else value
        return known[id(value)]
    if isinstance(value, tuple | list):
        return type(value)(_for_any_rows(item, rows, known) for item in value)
    if isinstance(value, dict):
        return {name: _for_any_rows(item, rows, known) for name, item in value.items()}
    return value

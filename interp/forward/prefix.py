"""The KV cache of a prefix: computed once, then read, never written, by any number of continuations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.forward.layers import run_layers
from interp.forward.shared_attention import Shared, hold

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["FrozenLayer", "FrozenPrefix", "repeated"]


class FrozenLayer(DynamicLayer):
    """Keys and values of a prefix at one layer; a continuation reads them and never writes.

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

"""The KV cache of a prefix: computed once, then read, never written, by any number of continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.forward.layers import run_layers
from interp.forward.shared_attention import Shared, hold
from interp.prompts import Media

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
    """Keys and values of the first tokens of some prompts: computed once, read by any number of continuations.

    `model.freeze_prefix(prompts)` makes one, which `run_with_cache` and `run_with_hooks` take as `prefix=`. Row i of a
    continuation goes on from row i modulo the prefix's rows: one row serves any number.

    Arguments:
        cache: what layers are given as `past_key_values`; continuations read it and never write.
        length: how many tokens.
        input_ids: (row, position), the tokens; None: not kept.
        media: of each row, what it was fed beside them; empty: nothing.
    """

    cache: DynamicCache
    length: int
    input_ids: Tensor | None = None
    media: Sequence[Media | None] = ()

    @classmethod
    @torch.no_grad()
    def of(cls, model: StandardizedTransformer, input_ids: Tensor, media: Sequence[Media | None] = ()) -> FrozenPrefix:
        """Run the prefix of some prompts, all equally long.

        Arguments:
            model: the model.
            input_ids: (row, position), without padding; no position at all is a prefix too.
            media: what each row is fed beside them, all or none of them; empty: nothing.
        """
        cache = DynamicCache()  # without the config: a layer with a window would forget what lies before it
        if input_ids.shape[1]:
            run_layers(model, input_ids, cache, 0, media)
            for layer in cache.layers:
                layer.__class__ = FrozenLayer
        else:
            cache.layers = [FrozenLayer() for _ in range(model.num_layers)]
        for frozen in cache.layers:
            frozen.module = model._module
        return cls(cache, input_ids.shape[1], input_ids, media)

    @property
    def layers(self) -> list[FrozenLayer]:
        """What the cache holds of each layer."""
        return [layer for layer in self.cache.layers if isinstance(layer, FrozenLayer)]

    def __len__(self) -> int:
        """How many rows."""
        return 0 if self.input_ids is None else len(self.input_ids)

    def of_rows(self, rows: Sequence[int]) -> FrozenPrefix:
        """The prefix of some rows of a continuation, in their order; the prefix itself where these are its own."""
        count = len(self)
        chosen = [row % count for row in rows]
        if count == 1 or chosen == list(range(count)):
            return self
        assert self.input_ids is not None
        cache = DynamicCache()
        for layer in self.layers:
            taken = FrozenLayer()
            taken.module = layer.module
            if layer.is_initialized:
                taken.lazy_initialization(layer.keys, layer.values)
                taken.keys, taken.values = layer.keys[chosen], layer.values[chosen]
            cache.layers.append(taken)
        return FrozenPrefix(
            cache, self.length, self.input_ids[chosen], [self.media[row] for row in chosen if self.media]
        )

    def thawed(self, rows: int | None = None) -> DynamicCache:
        """A copy that a model may write on, for `past_key_values=` of a pass or a generation.

        Arguments:
            rows: rows that go on from it, a multiple of the prefix's; None: as many as it has.
        """
        cache = DynamicCache()
        for index, layer in enumerate(self.layers):
            if layer.is_initialized:
                count = len(layer.keys) if rows is None else rows
                cache.update(repeated(layer.keys, count).clone(), repeated(layer.values, count).clone(), index)
        return cache

"""Runs that go on from a frozen prefix and remember what they add: their own keys and values, behind shared ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.forward.cascade import Shared
from interp.forward.prefix import FrozenLayer, FrozenPrefix, repeated
from interp.forward.sharing import hold

__all__ = ["Continuations"]


class _OwnLayer(DynamicLayer):
    """One layer's keys and values: those of a prefix, never written, and behind them those of each row.

    Room for a row's own is made ahead, so that a token more copies nothing. What a forward pass adds counts once
    `length` says so; until then another one writes over it. Fewer rows than there are are the first ones.
    """

    def __init__(self, prefix: FrozenLayer) -> None:
        super().__init__()
        self.module = prefix.module
        self.prefix = Shared(prefix.keys, prefix.values) if prefix.is_initialized else None
        self.own: Shared | None = None  # (row, key heads, room, head size)
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows, end = key_states.shape[0], self.length + key_states.shape[-2]
        if self.own is None:
            self.own = Shared(key_states.clone(), value_states.clone())
        keys, values = self.own.keys[:rows, :, :end], self.own.values[:rows, :, :end]
        keys[:, :, self.length :] = key_states
        values[:, :, self.length :] = value_states
        if self.prefix is None or hold(self.module, self.prefix):
            return keys, values
        return (
            torch.cat([repeated(self.prefix.keys, rows), keys], dim=-2),
            torch.cat([repeated(self.prefix.values, rows), values], dim=-2),
        )

    def get_seq_length(self) -> int:
        return self.length + (0 if self.prefix is None else self.prefix.keys.shape[-2])

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Put other own keys and values in place of these."""
        if self.own is not None:
            self.own = Shared(change(self.own.keys), change(self.own.values))


class Continuations:
    """What the layers remember of runs that go on from a frozen prefix.

    Arguments:
        prefix: of the prompts; run i goes on from prompt i modulo their number.
    """

    def __init__(self, prefix: FrozenPrefix) -> None:
        self.cache = DynamicCache()
        self._layers = [_OwnLayer(layer) for layer in prefix.layers]
        self.cache.layers = list(self._layers)
        self._before = prefix.length

    @property
    def length(self) -> int:
        """Tokens that a run has, those of the prefix included."""
        return self._before + self._layers[0].length

    def advance(self, tokens: int) -> None:
        """What the last forward pass added, so many tokens a row, is there to stay."""
        for layer in self._layers:
            layer.length += tokens

    def make_room(self, runs: int, tokens: int) -> None:
        """As many rows as these, a multiple of those that there are, each with room for tokens more."""

        def roomy(states: Tensor) -> Tensor:
            held = states.shape[-2]
            more = states.new_empty(runs, states.shape[1], held + tokens, states.shape[-1])
            more[:, :, :held] = repeated(states, runs)
            return more

        for layer in self._layers:
            layer.each(roomy)

    def arrange(self, rows: Callable[[int], Tensor], runs: int) -> None:
        """Put other rows first.

        Arguments:
            rows: layer -> (row,), which of those that there are.
            runs: how many rows there is to be room for.
        """
        for index, layer in enumerate(self._layers):
            first, held = rows(index), layer.length

            def arranged(states: Tensor, first: Tensor = first, held: int = held) -> Tensor:
                same = int(
                    (first == torch.arange(len(first), device="cpu")).long().cumprod(0).sum()
                )  # these can stay where they are
                if runs == len(states) and same == len(first):
                    return states
                moved = states[first[same:].to(states.device), :, :held]
                if runs < len(states):
                    kept = states[:same, :, :held]
                    states = states.new_empty(runs, *states.shape[1:])
                    states[:same, :, :held] = kept
                states[same : len(first), :, :held] = moved
                return states

            layer.each(arranged)

    def keep_prompts(self, prompts: Tensor) -> None:
        """Only some prompts, (kept,), have runs any more."""
        for layer in self._layers:
            if layer.prefix is not None and len(prompts) < len(layer.prefix.keys):
                kept = prompts.to(layer.prefix.keys.device)
                layer.prefix = Shared(layer.prefix.keys[kept], layer.prefix.values[kept])

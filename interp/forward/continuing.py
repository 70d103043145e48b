"""Runs that go on from a frozen prefix and remember what they add: their own keys and values, behind shared ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.forward.prefix import FrozenPrefix, repeated
from interp.forward.sharing import Shared, hold

__all__ = ["Continuations"]


class _OwnLayer(DynamicLayer):
    """One layer's keys and values: those of a prefix, never written, and behind them those of each run.

    Room for a run's own is made ahead, so that a token more copies nothing. What a forward pass adds counts once
    `advance` says so; until then another one writes over it.
    """

    def __init__(self, prefix: DynamicLayer) -> None:
        super().__init__()
        self.prefix = Shared(prefix.keys, prefix.values) if prefix.is_initialized else None
        self.own: Shared | None = None  # (run, key heads, room, head size)
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        runs, end = key_states.shape[0], self.length + key_states.shape[-2]
        if self.own is None:
            self.own = Shared(key_states.clone(), value_states.clone())
        keys, values = self.own.keys[:runs, :, :end], self.own.values[:runs, :, :end]
        keys[:, :, self.length :] = key_states
        values[:, :, self.length :] = value_states
        if self.prefix is None or hold(self.prefix):
            return keys, values
        return (
            torch.cat([repeated(self.prefix.keys, runs), keys], dim=-2),
            torch.cat([repeated(self.prefix.values, runs), values], dim=-2),
        )

    def get_seq_length(self) -> int:
        return self.length + (0 if self.prefix is None else self.prefix.keys.shape[-2])

    def make_room(self, runs: int, tokens: int) -> None:
        """Repeat what there is of each prompt for its runs, with room for tokens more."""
        if self.own is not None:
            self.own = Shared(_roomy(self.own.keys, runs, tokens), _roomy(self.own.values, runs, tokens))

    def keep(self, runs: Tensor, prompts: Tensor) -> None:
        """Only some runs go on, of some prompts."""
        if self.own is not None:
            self.own = Shared(_rows(self.own.keys, runs), _rows(self.own.values, runs))
        if self.prefix is not None:
            self.prefix = Shared(_rows(self.prefix.keys, prompts), _rows(self.prefix.values, prompts))


class Continuations:
    """What the layers remember of runs that go on from a frozen prefix.

    Arguments:
        prefix: of the prompts; run i goes on from prompt i modulo their number.
    """

    def __init__(self, prefix: FrozenPrefix) -> None:
        self.cache = DynamicCache()
        self.layers = [_OwnLayer(layer) for layer in prefix.cache.layers]
        self.cache.layers = list(self.layers)
        self._before = prefix.length

    @property
    def length(self) -> int:
        """Tokens that a run has, those of the prefix included."""
        return self._before + self.layers[0].length

    def advance(self, tokens: int) -> None:
        """What the last forward pass added, so many tokens a run, is there to stay."""
        for layer in self.layers:
            layer.length += tokens

    def make_room(self, runs: int, tokens: int) -> None:
        """As many runs as these, a multiple of those that there are, each with room for tokens more."""
        for layer in self.layers:
            layer.make_room(runs, tokens)

    def keep(self, runs: Tensor, prompts: Tensor) -> None:
        """Let only some runs, and only some prompts, go on; run i still belongs to prompt i modulo their number.

        Arguments:
            runs, prompts: (kept,), which.
        """
        for layer in self.layers:
            layer.keep(runs, prompts)


def _roomy(states: Tensor, runs: int, tokens: int) -> Tensor:
    """(run, heads, token, size), repeated for runs, with empty places behind."""
    held = states.shape[-2]
    roomy = states.new_empty(runs, states.shape[1], held + tokens, states.shape[-1])
    roomy[:, :, :held] = repeated(states, runs)
    return roomy


def _rows(states: Tensor, rows: Tensor) -> Tensor:
    return states if len(rows) == len(states) else states[rows.to(states.device)]

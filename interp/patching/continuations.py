"""Runs that go on from a frozen prefix: a KV cache of what each adds, and which of them still share one row.

Shapes: B rows; P prompts, of which B is a multiple; K key heads; S tokens of the prefix, T own tokens, N new tokens of
a pass, M tokens that there is room for; D head size; R runs, each a row by itself above its join; H histories.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.forward.prefix import FrozenLayer, FrozenPrefix, repeated
from interp.forward.shared_attention import Shared, hold

__all__ = ["Continuations", "Histories"]


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
        keys, values = self.own.keys[:rows, :, :end], self.own.values[:rows, :, :end]  # (B, K, T + N, D)
        keys[:, :, self.length :] = key_states
        values[:, :, self.length :] = value_states
        if self.prefix is None or hold(self.module, self.prefix):
            return keys, values
        return (
            torch.cat([repeated(self.prefix.keys, rows), keys], dim=-2),  # (B, K, S + T + N, D)
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
            more = states.new_empty(runs, states.shape[1], held + tokens, states.shape[-1])  # (R, K, M + tokens, D)
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
                moved = states[first[same:].to(states.device), :, :held]  # (row, K, T, D)
                if runs < len(states):
                    kept = states[:same, :, :held]
                    states = states.new_empty(runs, *states.shape[1:])  # (R, K, M, D)
                    states[:same, :, :held] = kept
                states[same : len(first), :, :held] = moved
                return states

            layer.each(arranged)

    def keep_prompts(self, prompts: Tensor) -> None:
        """Only some prompts, (kept,), have runs any more."""
        for layer in self._layers:
            if layer.prefix is not None and len(prompts) < len(layer.prefix.keys):
                kept = prompts.to(layer.prefix.keys.device)
                layer.prefix = Shared(layer.prefix.keys[kept], layer.prefix.values[kept])  # (kept, K, S, D) each


@dataclass(frozen=True)
class Histories:
    """What runs of one prompt have written behind it, each text once.

    A patch changes nothing up to its layer. So there, a run's new tokens are told apart by what it has written alone,
    and runs with one history are one row; above it, each run is a row by itself. In every layer the rows are: runs that
    are by themselves, in order, then histories that some run still shares.

    Arguments:
        joins: (run,) ascending, the last layer that a run shares; -1: none.
        of_run: (run,), its history.
        tops: (history,) descending, the last layer that a run of it shares.
    """

    joins: Tensor
    of_run: Tensor
    tops: Tensor

    @classmethod
    def of(cls, joins: Tensor) -> Histories:
        """Runs that have not written yet: one history.

        Arguments:
            joins: (run,) ascending.
        """
        return cls(joins, torch.zeros_like(joins), joins[-1:])

    def written(self, tokens: Tensor) -> tuple[Histories, Tensor]:
        """The histories after one more token each.

        Arguments:
            tokens: (run,).

        Returns:
            The histories, and the one that each goes on from, (history,).
        """
        return self._grouped(self.joins, self.of_run, tokens)

    def kept(self, runs: Tensor) -> tuple[Histories, Tensor]:
        """The histories of some runs, ascending, and which each was, (history,)."""
        return self._grouped(self.joins[runs], self.of_run[runs], torch.zeros_like(runs))

    @staticmethod
    def _grouped(joins: Tensor, before: Tensor, tokens: Tensor) -> tuple[Histories, Tensor]:
        distinct, group = torch.unique(torch.stack([before, tokens]), dim=1, return_inverse=True)  # (2, H), (R,)
        tops = torch.full((distinct.shape[1],), -1, device="cpu").scatter_reduce(0, group, joins, "amax")  # (H,)
        tops, order = tops.sort(descending=True, stable=True)
        return Histories(joins, order.argsort()[group], tops), distinct[0, order]

    def alone(self, layer: int) -> int:
        """How many runs, the first ones, are by themselves in a layer."""
        return int((self.joins < layer).sum())

    def shared(self, layer: int) -> int:
        """How many histories, the first ones, some run shares in a layer."""
        return int((self.tops >= layer).sum())

    @cached_property
    def _members(self) -> Tensor:
        """(history,), a run of each."""
        members = torch.empty_like(self.tops)
        members[self.of_run] = torch.arange(len(self.of_run), device="cpu")
        return members

    def fed(self, tokens: Tensor) -> Tensor:
        """(row,), the tokens of the rows in layer 0, of (run,)."""
        return torch.cat([tokens[: self.alone(0)], tokens[self._members[: self.shared(0)]]])

    def entering(self, layer: int) -> Tensor:
        """(row,), the rows of the layer before that the rows of a layer go on from; `layer` may be one past the last,
        where every run is by itself."""
        before, now = self.alone(layer - 1), self.alone(layer)
        return torch.cat(
            [
                torch.arange(before, device="cpu"),
                before + self.of_run[before:now],
                before + torch.arange(self.shared(layer), device="cpu"),
            ]
        )

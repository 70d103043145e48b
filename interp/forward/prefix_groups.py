"""Group prompts that begin with the same tokens, so that each shared prefix is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from interp.forward.batch import READS_ONE_PREFIX, Feed, last_states
from interp.forward.prefix import FrozenPrefix
from interp.model.verdicts import Pair, regime_of, verdict

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["SharedPrefix", "plan_prefixes", "prefixes_fit"]

# What a group costs, in tokens: the forward pass of its prefix, and one of a batch that it does not fill.
GROUP_COST = 64


class SharedPrefix(NamedTuple):
    """Prompts that begin with the same tokens.

    Arguments:
        length: how many tokens; less than any of the prompts has.
        rows: the prompts, ascending.
    """

    length: int
    rows: list[int]


def plan_prefixes(input_ids: Sequence[Sequence[int]], cost: float = GROUP_COST) -> list[SharedPrefix]:
    """Find the prefixes that are worth computing once.

    A group of n prompts that begin with the same p tokens saves (n - 1) p tokens and costs `cost`. From the longest
    beginnings to shorter ones, a beginning takes the prompts that have it and save more so than with a longer one, if
    that pays. At least one token of each prompt is left to go on with.

    Arguments:
        input_ids: token ids of each prompt, unpadded.
        cost: what a group costs, in tokens.

    Returns:
        Groups; those that share nothing come first, as one of length 0. Each prompt is in exactly one.
    """
    order = sorted(range(len(input_ids)), key=lambda row: list(input_ids[row]))
    common = [_common(input_ids[one], input_ids[other]) for one, other in pairwise(order)]
    nodes = [_Node(0)]  # the beginnings of the prompt at hand that others share, each longer than the one before it
    for row, length in zip(order, [*common, 0], strict=False):  # length: what it shares with the next one
        ending = _Node(length, loose=[row])
        while nodes[-1].length > length:
            longer = nodes.pop()
            longer.take(ending)
            longer.close(cost)
            ending = longer
        if nodes[-1].length < length:
            nodes.append(_Node(length))
        nodes[-1].take(ending)
    alone = [SharedPrefix(0, sorted(nodes[0].loose))] if nodes[0].loose else []
    return alone + sorted(nodes[0].groups, key=lambda group: group.rows)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts share at the start: at most one less than the shorter one has."""
    shorter = min(len(one), len(other)) - 1
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)


@dataclass
class _Node:
    """A prefix that some prompts share.

    Arguments:
        length: its tokens.
        groups: of prompts that begin so and share more than that.
        loose: prompts that begin so and are in no group.
    """

    length: int
    groups: list[SharedPrefix] = field(default_factory=list)
    loose: list[int] = field(default_factory=list)

    def take(self, longer: _Node) -> None:
        self.groups += longer.groups
        self.loose += longer.loose

    def close(self, cost: float) -> None:
        """All prompts are known: make a group of the loose ones, and of groups that save less than they would here."""
        kept = [group for group in self.groups if _saved(group, cost) >= len(group.rows) * self.length]
        rows = sorted(self.loose + [row for group in self.groups if group not in kept for row in group.rows])
        ours = [*kept, SharedPrefix(self.length, rows)]
        if sum(_saved(group, cost) for group in ours) > sum(_saved(group, cost) for group in self.groups):
            self.groups, self.loose = ours, []


def _saved(group: SharedPrefix, cost: float) -> float:
    return (len(group.rows) - 1) * group.length - cost


@torch.no_grad()
def prefixes_fit(model: StandardizedTransformer, input_ids: Sequence[Sequence[int]], length: int) -> bool:
    """Whether continuing from the KV cache of a prefix gives what whole prompts give.

    Found out once a regime, by the shortest and the longest of the prompts at hand; recurrent layers, caches of other
    forms and the like do not fit, and then one line of the log says so. The verdict is kept.

    Arguments:
        model: the model.
        input_ids: token ids of prompts that begin with the same tokens.
        length: how many tokens these are.
    """
    lengths = [len(ids) for ids in input_ids]
    chosen = [input_ids[lengths.index(chosen)] for chosen in (min(lengths), max(lengths))]
    consequence = "prompts that begin alike run as a whole: a shared beginning"
    limit = regime_of(model, length)
    name = "prefixes" + f" of more than {limit}" * bool(limit)
    return verdict(
        model, name, lambda _: _trial(model, chosen, length), consequence, longest=max(lengths), at_hand=True,
        choice=READS_ONE_PREFIX,
    )  # fmt: skip


def _trial(model: StandardizedTransformer, prompts: Sequence[Sequence[int]], length: int) -> list[Pair]:
    """Run prompts from their shared prefix on, and each whole."""
    longest = max(len(ids) for ids in prompts)
    padded = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in prompts], device=model.device)
    lengths = [len(ids) for ids in prompts]

    def shared() -> Tensor:
        prefix = FrozenPrefix.of(model, padded[:1, :length])
        hidden = last_states(model, Feed.of(model, padded[:, length:], prefix))
        return torch.cat([row[: count - length] for row, count in zip(hidden, lengths, strict=True)])

    def whole() -> Tensor:
        alone = [row[None, :count] for row, count in zip(padded, lengths, strict=True)]
        return torch.cat([last_states(model, Feed.of(model, ids))[0, length:] for ids in alone])

    return [(shared, whole)]

"""One batch of a forward pass: prompts padded or packed, whole or continued from the KV cache of a shared prefix; and
which prompts share one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import nnsight
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.forward.packing import Packed, sent
from interp.forward.prefix import FrozenPrefix
from interp.forward.rope import rotary_limit
from interp.forward.shared_attention import sharing
from interp.model.fed import first_position
from interp.model.hooks import users_hook
from interp.model.verdicts import Pair, holds, is_changed, misfit, regime_of, sample_ids, verdict, verdicts_of
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "READS_ONE_PREFIX",
    "Feed",
    "SharedPrefix",
    "check_prefix",
    "last_states",
    "packing_fits",
    "plan_prefixes",
    "prefixes_fit",
]


READS_ONE_PREFIX = "rows read one prefix"  # the verdict on it, found out by `prefixes_fit`


@dataclass(frozen=True)
class Feed:
    """One batch of a forward pass.

    Arguments:
        inputs: keyword arguments of a trace.
        prefix: what the batch goes on from.
        packed: how its prompts stand in one row; None: each is a row.
        sees: its prompts have images; then the model runs as it is, with nothing left out.
    """

    inputs: dict[str, Any]
    prefix: FrozenPrefix | None = None
    packed: Packed | None = None
    sees: bool = False

    @classmethod
    def of(
        cls,
        model: StandardizedTransformer,
        input_ids: Tensor,
        prefix: FrozenPrefix | None = None,
        packed: Packed | None = None,
    ) -> Feed:
        """Pad prompts on the right for a causal model, which needs no mask for padding behind a prompt.

        Arguments:
            model: the model.
            input_ids: (row, position), the tokens behind the prefix, filled up on the right with any.
            prefix: what they go on from, of one row or as many; None: they are whole.
            packed: how prompts stand in the one row, in a family that `packing_fits`; None: each is a row.
        """
        inputs: dict[str, Any] = {"input_ids": sent(input_ids, model.device), "use_cache": prefix is not None}
        if prefix is None and packed is None:
            return cls(inputs)
        rows, length = input_ids.shape
        start = 0 if prefix is None else prefix.length
        if prefix is not None:
            inputs["past_key_values"] = prefix.cache
        # A mask that hides nothing: without one, some families take positions that begin anew for a mask.
        inputs["attention_mask"] = torch.ones(rows, start + length, dtype=torch.long, device=model.device)
        if model.takes_position_ids:
            columns = torch.arange(length, device=model.device) if packed is None else packed.columns
            inputs["position_ids"] = (start + columns + first_position(model)).expand(rows, length)
        return cls(inputs, prefix, packed)

    @property
    def keys(self) -> int:
        """Tokens of a row, with those before it: what decides on the model's path (`interp.model.verdicts`)."""
        return int(self.inputs["input_ids"].shape[1]) + (0 if self.prefix is None else self.prefix.length)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt, with what fills it up."""
        if self.packed is not None:
            return list(self.packed.lengths)
        rows, length = self.inputs["input_ids"].shape
        return [length] * rows

    def places(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Where tokens are in what goes through the model, by their prompt and their place in it, each (token,)."""
        if self.packed is None:
            return rows, columns
        return torch.zeros_like(rows), self.packed.starts.to(rows.device)[rows] + columns

    def reading(self, model: StandardizedTransformer) -> AbstractContextManager[None]:
        """What its forward pass runs in."""
        return sharing(model._module, self.packed) if self.packed is not None else self.sharing(model)

    def sharing(self, model: StandardizedTransformer) -> AbstractContextManager[None]:
        """Where the family shares, all rows read the one prefix in this; elsewhere each has a copy."""
        shares = self.prefix is not None and verdicts_of(model).get(READS_ONE_PREFIX)
        return sharing(model._module) if shares else nullcontext()


@torch.no_grad()
def packing_fits(model: StandardizedTransformer, longest: int, *, behind_prefix: bool) -> bool:
    """Whether packed prompts give what each gives alone, whole or continued from a prefix.

    Found out once by a small case done both ways; layers that carry a state along the row do not fit, nor does
    attention of a family's own. The verdict is kept.

    Arguments:
        model: the model, which is causal.
        longest: tokens of the longest row, those of the prefix included.
        behind_prefix: whether they go on from a prefix, in a family that `prefixes_fit`.
    """
    name = "prompts in one row" + " behind a prefix" * behind_prefix
    start = 3 if behind_prefix else 0
    consequence = f"is given prompts side by side: {name} it"
    # The slow way costs little: no warning.
    return verdict(
        model, name, lambda length: _trial(model, start, length), consequence, longest=longest, level=logging.INFO
    )


def _trial(model: StandardizedTransformer, start: int, longest: int) -> list[Pair] | str:
    """Run three prompts packed, and each alone, after a prefix of `start` tokens; a text says why it cannot be done."""
    config: Any = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attends by {config._attn_implementation!r}"
    if not model.takes_position_ids or getattr(config, "attn_temperature_tuning", False):
        return "counts the tokens of a row"
    if start and not verdicts_of(model).get(READS_ONE_PREFIX, False):
        return "is given copies of the prefix"
    ids = sample_ids(model, 3, start + longest)
    ids[:, :start] = ids[0, :start]
    lengths = [longest, 4, longest - 2]
    ends = [row[: start + length] for row, length in zip(ids, lengths, strict=True)]

    def alone() -> Tensor:
        return torch.cat([last_states(model, Feed.of(model, end[None]))[0, start:] for end in ends])

    def packed() -> Tensor:
        prefix = FrozenPrefix.of(model, ids[:1, :start]) if start else None
        row = torch.cat([end[start:] for end in ends])[None]
        return last_states(model, Feed.of(model, row, prefix, Packed.of(lengths, model.device)))[0]

    return [(packed, alone)]


def last_states(model: StandardizedTransformer, feed: Feed) -> Tensor:
    """(row, position, hidden), the residual stream after the last layer."""
    with feed.reading(model), model.trace(**feed.inputs) as tracer:
        hidden: Tensor = nnsight.save(model.read(Site("resid_post", model.num_layers - 1)).clone())
        tracer.stop()
    return hidden


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
    return not is_changed(model) and _prefixes_hold(model, input_ids, length)


def _prefixes_hold(model: StandardizedTransformer, input_ids: Sequence[Sequence[int]], length: int) -> bool:
    lengths = [len(ids) for ids in input_ids]
    chosen = _extremes(input_ids)
    consequence = "prompts that begin alike run as a whole: a shared beginning"
    limit = regime_of(model, length)
    name = "prefixes" + f" of more than {limit}" * bool(limit)
    return holds(
        model, name, lambda _: _prefix_trial(model, chosen, length), consequence, longest=max(lengths), at_hand=True,
        choice=READS_ONE_PREFIX,
    )  # fmt: skip


def _extremes(input_ids: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The shortest and the longest of prompts."""
    lengths = [len(ids) for ids in input_ids]
    return [input_ids[lengths.index(chosen)] for chosen in (min(lengths), max(lengths))]


@torch.no_grad()
def check_prefix(model: StandardizedTransformer, input_ids: Sequence[Sequence[int]], length: int) -> None:
    """Raise unless continuing from the KV cache of a prefix gives what whole prompts give; hooks of ours stand aside.

    Arguments:
        model: the model.
        input_ids: token ids of whole prompts.
        length: tokens of the prefix.

    Raises:
        InterpError: it does not, and why; or a hook on the modules, which would see other tokens than in whole prompts.
    """
    hook = users_hook(model._module)
    if hook is not None:
        raise InterpError(
            f"a frozen prefix would show {hook} the tokens behind it alone. Remove the hook, or put it on the model by "
            "`model.add_hook`, whose hooks act on what follows a prefix."
        )
    limit = rotary_limit(model)
    if limit is not None and max(map(len, input_ids)) > limit:
        raise InterpError(
            f"{type(model._module).__name__} rotates prompts of more than {limit} tokens by their length: the keys of "
            "a prefix depend on what follows it. Run the prompts whole."
        )
    edits, model._edits = model._edits, []
    try:
        if _prefixes_hold(model, input_ids, length):
            return
        [(fast, slow)] = _prefix_trial(model, _extremes(input_ids), length)
        reason = misfit(model, fast, slow())
    finally:
        model._edits = edits
    raise InterpError(
        f"{type(model._module).__name__}: going on from the keys and values of {length} tokens "
        f"{reason or 'gives other numbers than whole prompts'}. Layers that keep a state of their own (Mamba, linear "
        "attention, convolutions) cannot be frozen: run the prompts whole."
    )


def _prefix_trial(model: StandardizedTransformer, prompts: Sequence[Sequence[int]], length: int) -> list[Pair]:
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

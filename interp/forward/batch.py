"""One batch of a forward pass: prompts padded or packed, whole or continued from the KV cache of a shared prefix."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from interp.forward.packing import Packed, sent
from interp.forward.prefix import FrozenPrefix
from interp.forward.shared_attention import sharing
from interp.model.verdicts import Pair, sample_ids, verdict, verdicts_of
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["READS_ONE_PREFIX", "Feed", "last_states", "packing_fits"]

READS_ONE_PREFIX = "rows read one prefix"  # the verdict on it, found out by `prefixes_fit`


@dataclass(frozen=True)
class Feed:
    """One batch of a forward pass.

    Arguments:
        inputs: keyword arguments of a trace.
        prefix: what the batch goes on from.
        packed: how its prompts stand in one row; None: each is a row.
    """

    inputs: dict[str, Any]
    prefix: FrozenPrefix | None = None
    packed: Packed | None = None

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
            inputs["position_ids"] = (start + columns).expand(rows, length)
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

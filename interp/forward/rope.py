"""Rotary frequencies that depend on prompt length (longrope, dynamic NTK): which prompts may share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.batching import batches_by_length
from interp.model.padding import pads
from interp.model.verdicts import rotations_by_length, warn_once

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["first_changed", "forget_lengths", "rotary_limit", "stays_within", "whole_batches"]


def rotary_limit(model: StandardizedTransformer) -> int | None:
    """Prompt length up to which the rotation is the same in every batch; None: it always is.

    Where the rotation is scaled by `longrope` (Phi 3) or `dynamic`, the longest prompt of a forward pass, once it is
    longer than what the model was first trained on, changes the frequencies of all its prompts, at all positions.

    Arguments:
        model: the model.
    """
    config: Any = model._module.config.get_text_config()
    lengths = [
        entry.get("original_max_position_embeddings") or config.max_position_embeddings
        for entry in rotations_by_length(config)
    ]
    return min(lengths, default=None)


def first_changed(model: StandardizedTransformer, length: int, position: int) -> int:
    """From where on prompts have to run together, of which only what stands at a position and behind it is changed.

    Arguments:
        model: the model.
        length: tokens of each prompt.
        position: the first that is changed.

    Returns:
        The position; or 0 where the prompts are so long that their beginning, run alone, would be rotated otherwise.
    """
    limit = rotary_limit(model)
    return position if limit is None or length <= limit else 0


def stays_within(model: StandardizedTransformer, lengths: Sequence[int], more: int = 0) -> bool:
    """Whether no prompt is so long that the rotation depends on its length; where one is, one line of the log says so.

    Arguments:
        model: the model.
        lengths: tokens of each prompt.
        more: tokens that each goes on for.
    """
    limit = rotary_limit(model)
    if limit is None or max(lengths, default=0) + more <= limit:
        return True
    message = "prompts of more than %d tokens, by whose length it rotates, run as a whole."
    warn_once(model, "rotation by length", message, limit)
    return False


def whole_batches(
    model: StandardizedTransformer, lengths: Sequence[int], batch_size: int, more: int = 0
) -> list[list[int]]:
    """Batches of whole prompts: of similar length, or of one length where padding changes the numbers.

    Of one length where the rotation depends on it, where padding on the left changes the model's numbers, and where
    something of the user's counts tokens (`interp.model.verdicts.is_changed`).

    Arguments:
        model: the model.
        lengths: tokens of each prompt.
        batch_size: prompts in a batch at most.
        more: tokens that each goes on for.

    Returns:
        Row numbers by batch, shortest prompts first.
    """
    limit, longest = rotary_limit(model), max(lengths, default=0) + more
    by_length = limit is not None and longest > limit
    if not by_length and (len(set(lengths)) < 2 or pads(model, longest)):
        return batches_by_length(lengths, batch_size)
    batches = []
    for length in sorted(set(lengths)):
        rows = [row for row, own in enumerate(lengths) if own == length]
        batches += [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return batches


def forget_lengths(model: StandardizedTransformer) -> None:
    """Reset `dynamic` rotation, which remembers the longest prompt that it has seen, to its state after loading.

    Arguments:
        model: the model.
    """
    entries = rotations_by_length(model._module.config.get_text_config())
    if not any(entry["rope_type"] == "dynamic" for entry in entries):
        return
    for module in model._module.modules():
        rotary: Any = module
        types = getattr(module, "rope_type", None)  # one, or one for each kind of layer
        for kind, rope_type in types.items() if isinstance(types, dict) else [("", types)]:
            if rope_type != "dynamic":
                continue
            prefix = f"{kind}_" if kind else ""
            name, original = f"{prefix}inv_freq", getattr(rotary, f"{prefix}original_inv_freq")
            rotary.register_buffer(name, original.to(getattr(rotary, name).device), persistent=False)
            setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)

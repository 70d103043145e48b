"""Which prompts can walk together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

__all__ = ["WALKING_TOKENS", "batches_alike"]

# Tokens of runs that walk at once: what bounds the memory.
WALKING_TOKENS = 1 << 16


def batches_alike(
    target_ids: Sequence[Sequence[int]],
    positions: Sequence[Hashable],
    batch_size: int,
    runs: int,
    *,
    new_tokens: int = 0,
    budget: int | None = None,
) -> list[list[int]]:
    """Batches of target prompts of one length that are patched at the same tokens, equal prompts together.

    Arguments:
        target_ids: token ids of each prompt, unpadded.
        positions: the token of each, or the tuple of tokens, that is written.
        batch_size: prompts in a batch at most.
        runs: how many runs each prompt has, which walk together, each beside the keys of the whole prompt.
        new_tokens: how many each run goes on for.
        budget: tokens of all runs of a batch at most, though a batch has one prompt at least; None: `WALKING_TOKENS`.

    Returns:
        Row numbers by batch.
    """
    budget = WALKING_TOKENS if budget is None else budget
    found: dict[tuple[int, Hashable], list[int]] = {}
    for row in sorted(range(len(target_ids)), key=lambda row: tuple(target_ids[row])):
        found.setdefault((len(target_ids[row]), positions[row]), []).append(row)
    batches = []
    for (length, _), rows in sorted(found.items(), key=lambda item: item[0][0]):
        size = max(1, min(batch_size, budget // (runs * (length + new_tokens))))
        batches += [rows[start : start + size] for start in range(0, len(rows), size)]
    return batches

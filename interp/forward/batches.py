"""Which prompts can walk together."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["batches_alike"]

# Tokens of target prompts that walk at once, layers times prompts times length: what bounds the memory.
WALKING_TOKENS = 1 << 16


def batches_alike(
    target_ids: Sequence[Sequence[int]], positions: Sequence[int], batch_size: int, num_layers: int
) -> list[list[int]]:
    """Batches of target prompts of one length that are patched at one token, equal prompts together.

    Arguments:
        target_ids: token ids of each prompt, unpadded.
        positions: the token of each that is written.
        batch_size: prompts in a batch at most.
        num_layers: the model's depth; the rows of all layers walk together, each beside the keys of the whole prompt.

    Returns:
        Row numbers by batch.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for row in sorted(range(len(target_ids)), key=lambda row: tuple(target_ids[row])):
        found.setdefault((len(target_ids[row]), positions[row]), []).append(row)
    batches = []
    for (length, _), rows in sorted(found.items()):
        size = max(1, min(batch_size, WALKING_TOKENS // (num_layers * length)))
        batches += [rows[start : start + size] for start in range(0, len(rows), size)]
    return batches

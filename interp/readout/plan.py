"""How rows and vocabulary are divided so that nothing grows with either, and the buffers that this takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.batching import buffer_elements
from interp.readout.order import BLOCK

__all__ = ["Plan", "Workspace"]

# Tokens in a chunk at most; `interp.batching` says how many numbers a buffer of logits holds.
CPU_TOKENS, ACCELERATOR_TOKENS = 1 << 12, 1 << 14
# Numbers in the buffers of the sums, which go over the logits several times: 1 MiB on a CPU, for its nearer cache.
CPU_SUMMED = 1 << 18


@dataclass(frozen=True)
class Plan:
    """How rows and vocabulary are divided.

    Arguments:
        rows: rows that are read at once, of all layers.
        summed: rows of these that are summed at once.
        tokens: tokens in a chunk, a multiple of `BLOCK`.
        vocabulary: tokens in all.
    """

    rows: int
    summed: int
    tokens: int
    vocabulary: int

    @classmethod
    def of(cls, layers: int, vocabulary: int, device: torch.device) -> Plan:
        """The division that keeps the buffers small.

        Arguments:
            layers: how many layers are read of each row, all at once.
            vocabulary: number of logits.
            device: where.
        """
        elements = buffer_elements(device)
        most, summed = (CPU_TOKENS, CPU_SUMMED) if device.type == "cpu" else (ACCELERATOR_TOKENS, elements)
        most = min(most, max(elements // layers, BLOCK))  # all layers of one row at the least
        chunks = -(-vocabulary // most)
        tokens = -(-vocabulary // (chunks * BLOCK)) * BLOCK
        return cls(max(1, elements // (layers * tokens)), max(1, summed // (layers * tokens)), tokens, vocabulary)

    @property
    def starts(self) -> range:
        """The first token of each chunk."""
        return range(0, self.vocabulary, self.tokens)


class Workspace:
    """Buffers that are used again for every chunk."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of a shape, with whatever is in it."""
        count = torch.Size(shape).numel()
        held = self._held.get((name, dtype))
        if held is None or held.numel() < count:
            held = self._held[name, dtype] = torch.empty(count, dtype=dtype, device=self.device)
        return held[:count].view(shape)

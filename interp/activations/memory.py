"""How much goes through a model at once, and what happens when that is too much."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from interp.errors import InterpError

__all__ = ["Budget", "is_out_of_memory"]

# On a processor, few enough for their activations to stay in its caches; elsewhere, many enough to keep it busy.
PROCESSOR_TOKENS, ACCELERATOR_TOKENS = 512, 8192
# A forward pass costs something besides its tokens: the weights are read once more, kernels are started. About what a
# sixteenth of those tokens costs: on a processor, 25 to 30 were measured.
BATCH_COST = 1 / 16
# What allocators say that raise no `torch.OutOfMemoryError`: torch's own on a processor (Linux, Windows), CUDA beside
# torch's allocator, Apple's, cuBLAS.
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
_log = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the device or beside it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@dataclass
class Budget:
    """Tokens in a forward pass at most, padding included; less once memory has run out.

    Arguments:
        tokens: how many.
    """

    tokens: int

    @classmethod
    def of(cls, batch_tokens: int | None, device: torch.device) -> Budget:
        """The budget that is asked for; None: what suits the device.

        Raises:
            InterpError: it is not positive.
        """
        if batch_tokens is None:
            return cls(PROCESSOR_TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS)
        if batch_tokens < 1:
            raise InterpError(f"batch_tokens: expected at least 1, got {batch_tokens}.")
        return cls(batch_tokens)

    @property
    def batch_cost(self) -> float:
        """What a forward pass costs besides its tokens, in tokens."""
        return self.tokens * BATCH_COST

    def halve(self, spent: int) -> None:
        """Go on with half of what a forward pass spent that ran out of memory, and say so.

        Arguments:
            spent: its tokens, padding included.
        """
        self.tokens = max(1, min(self.tokens, spent) // 2)
        _log.warning(
            "out of memory with %d tokens in a forward pass: going on with at most %d (batch_tokens).",
            spent, self.tokens,
        )  # fmt: skip
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

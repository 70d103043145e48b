"""Batches prompts: which run together, their padded tensors, budgets of tokens, retries when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interp.errors import InterpError

__all__ = [
    "WALKING_TOKENS",
    "Budget",
    "batches_alike",
    "batches_by_length",
    "batches_by_tokens",
    "batches_in_one_row",
    "buffer_elements",
    "how_many",
    "is_out_of_memory",
    "left_padded",
    "right_padded",
]

# On a processor, few enough for their activations to stay in its caches; elsewhere, many enough to keep it busy.
PROCESSOR_TOKENS, ACCELERATOR_TOKENS = 512, 8192
# A forward pass costs something besides its tokens: the weights are read once more, kernels are started. About what a
# sixteenth of those tokens costs: on a processor, 25 to 30 were measured.
BATCH_COST = 1 / 16
# What allocators say that raise no `torch.OutOfMemoryError`: torch's own on a processor (Linux, Windows), CUDA beside
# torch's allocator, Apple's, cuBLAS.
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
# Numbers in a buffer: 8 MiB on a CPU (larger ones leave the cache, smaller ones make matrix products slower). An
# accelerator wants long kernels.
CPU_ELEMENTS, ACCELERATOR_ELEMENTS = 1 << 21, 1 << 26
# Tokens of runs that walk at once: what bounds the memory.
WALKING_TOKENS = 1 << 16
_log = logging.getLogger(__name__)


def batches_by_tokens(lengths: Sequence[int], batch_tokens: int, batch_cost: float) -> list[list[int]]:
    """Put prompts of similar length together, under a budget of padded tokens, at the least cost.

    A batch costs its tokens, padding included, and `batch_cost`; of all ways to cut the prompts in the order of their
    lengths, the cheapest is taken.

    Arguments:
        lengths: tokens of each prompt.
        batch_tokens: tokens in a batch, padding included, at most; a prompt that is longer is a batch of its own.
        batch_cost: what a forward pass costs besides its tokens, in tokens.

    Returns:
        Row numbers by batch, longest prompts first, so that memory that runs out does so at once; a function of the
        arguments alone.
    """
    rows = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    cost = np.zeros(len(rows) + 1)  # cost[n]: the least cost of the n shortest prompts
    start = [0] * (len(rows) + 1)  # start[n]: where the last batch of these begins
    for stop in range(1, len(rows) + 1):
        longest = lengths[rows[stop - 1]]
        first = max(0, stop - max(1, batch_tokens // longest))
        costs = cost[first:stop] + longest * np.arange(stop - first, 0, -1)
        best = int(costs.argmin())
        start[stop] = first + best
        cost[stop] = costs[best] + batch_cost
    batches = []
    stop = len(rows)
    while stop:
        batches.append(rows[start[stop] : stop])
        stop = start[stop]
    return batches


def batches_in_one_row(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Put prompts of similar length together, to be packed into one row without padding.

    Attention alone has them side by side, filled up: to at most twice the budget.

    Arguments:
        lengths: tokens of each prompt.
        batch_tokens: tokens in a batch at most; a prompt that is longer is a batch of its own.

    Returns:
        Row numbers by batch, longest prompts first, in each as among them; a function of the arguments alone.
    """
    batches: list[list[int]] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        tokens += lengths[row]
        filled = (len(batches[-1]) + 1) * lengths[batches[-1][0]] if batches else 0
        if not batches or tokens > batch_tokens or filled > 2 * batch_tokens:
            batches.append([])
            tokens = lengths[row]
        batches[-1].append(row)
    return batches


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Put prompts of similar length together, so that little padding is computed.

    Arguments:
        lengths: tokens of each prompt.
        batch_size: prompts in a batch at most.

    Returns:
        Row numbers by batch, shortest prompts first; a function of the lengths alone.
    """
    rows = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


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


def right_padded(input_ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Prompts side by side, each filled up with its own last token.

    A causal model gives every token what it gives without what follows, so no mask is needed; the filling is in every
    vocabulary, and is no pad token that a model would take for a fault.

    Arguments:
        input_ids: token ids of each prompt, unpadded.

    Returns:
        (prompt, position) on the CPU.
    """
    longest = max(len(ids) for ids in input_ids)
    return torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in input_ids], device="cpu")


def left_padded(input_ids: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch as a model takes it, padded on the left, so that every prompt's last token is in the last column.

    Arguments:
        input_ids: token ids of each prompt, unpadded.
        pad_id: any id of the vocabulary; the mask hides it.
        device: where the tensors go.

    Returns:
        `input_ids`, `attention_mask` and `position_ids`, each (batch, length). Positions count from a prompt's own
        first token; without them a model with learned positions (GPT-2) would count the padding.
    """
    longest = max(len(ids) for ids in input_ids)
    ids = torch.full((len(input_ids), longest), pad_id, dtype=torch.long, device="cpu")
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(input_ids):
        ids[row, longest - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long, device="cpu")
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: tensor.to(device) for name, tensor in batch.items()}


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
        """Halve the budget after a forward pass that ran out of memory, and log it.

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


def buffer_elements(device: torch.device) -> int:
    """Numbers that a buffer on a device holds."""
    return CPU_ELEMENTS if device.type == "cpu" else ACCELERATOR_ELEMENTS


def how_many(size: int, device: torch.device) -> int:
    """How many items of `size` numbers fit into a buffer; at least one."""
    return max(1, buffer_elements(device) // max(size, 1))

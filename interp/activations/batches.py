"""Which prompts go through the model together, and the tensors that they go as."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "batches_by_length",
    "batches_by_tokens",
    "batches_in_one_row",
    "left_padded",
    "right_padded",
    "whole_inputs",
]


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
    """Put prompts of similar length together that go through the model as one row, without padding.

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


def whole_inputs(model: StandardizedTransformer, input_ids: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """What a forward pass of whole prompts is given; of one length, unless padding leaves the model's numbers alone.

    Arguments:
        model: the model.
        input_ids: token ids of each prompt, unpadded.

    Returns:
        `input_ids`, and `attention_mask` and `position_ids` where the model takes them, each (row, position).
    """
    inputs = left_padded(input_ids, 0, model.device)  # 0 is in every vocabulary, a pad token may not be
    if "attention_mask" not in inspect.signature(type(model._module).forward).parameters:
        del inputs["attention_mask"]
    if not model.takes_position_ids:  # no positions (Bloom, MPT), only distances, which padding leaves alone
        del inputs["position_ids"]
    return inputs

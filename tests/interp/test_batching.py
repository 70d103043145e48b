"""Which prompts go together, against all other ways, and what they look like; when memory has run out, by what
allocators really say, and what becomes of the budget.
"""

from __future__ import annotations

import logging
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.batching import (
    ACCELERATOR_TOKENS,
    PROCESSOR_TOKENS,
    Budget,
    batches_by_length,
    batches_by_tokens,
    batches_in_one_row,
    is_out_of_memory,
    left_padded,
    right_padded,
)
from interp.errors import InterpError

LENGTHS = [5, 9, 3, 12, 7, 5, 1]


def cost(lengths: list[int], batches: list[list[int]], batch_cost: float) -> float:
    return sum(len(batch) * max(lengths[row] for row in batch) + batch_cost for batch in batches)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    batch_tokens=st.integers(1, 90),
    batch_cost=st.sampled_from([0.0, 1.0, 5.5, 40.0]),
)
def test_no_other_way_under_the_budget_costs_less(lengths: list[int], batch_tokens: int, batch_cost: float) -> None:
    batches = batches_by_tokens(lengths, batch_tokens, batch_cost)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[r] for r in batch) <= batch_tokens for batch in batches)
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    rows = sorted(range(len(lengths)), key=lambda row: lengths[row])
    least = float("inf")
    for count in range(len(rows)):
        for cuts in combinations(range(1, len(rows)), count):
            edges = [0, *cuts, len(rows)]
            ways = [rows[start:stop] for start, stop in pairwise(edges)]
            if all(len(way) == 1 or len(way) * lengths[way[-1]] <= batch_tokens for way in ways):
                least = min(least, cost(lengths, ways, batch_cost))
    assert abs(cost(lengths, batches, batch_cost) - least) < 1e-9


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 30), max_size=12), batch_tokens=st.integers(1, 90))
def test_rows_of_prompts_are_within_the_budget_and_attention_within_two(lengths: list[int], batch_tokens: int) -> None:
    batches = batches_in_one_row(lengths, batch_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    order = [lengths[row] for batch in batches for row in batch]
    assert order == sorted(order, reverse=True)
    for at, batch in enumerate(batches):
        tokens, filled = sum(lengths[row] for row in batch), len(batch) * lengths[batch[0]]
        assert len(batch) == 1 or (tokens <= batch_tokens and filled <= 2 * batch_tokens)
        if at + 1 < len(batches):  # the next prompt did not fit
            more = tokens + lengths[batches[at + 1][0]]
            assert more > batch_tokens or filled + lengths[batch[0]] > 2 * batch_tokens


def test_prompts_in_one_row() -> None:
    assert batches_in_one_row(LENGTHS, 14) == [[3], [1], [4, 0], [5, 2, 6]]
    assert batches_in_one_row([20, 1, 1, 1, 1], 20) == [[0], [1, 2, 3, 4]]
    assert batches_in_one_row([8, 1, 1, 1, 1, 1], 12) == [[0, 1, 2], [3, 4, 5]]  # else attention has 32 places
    assert batches_in_one_row([], 14) == []


def test_batches_by_a_budget_and_by_number() -> None:
    assert batches_by_tokens(LENGTHS, 15, 1) == [[3], [1], [4], [0, 5], [2], [6]]
    assert batches_by_tokens(LENGTHS, 14, 3) == [[3], [1], [4], [0, 5], [6, 2]]
    assert batches_by_tokens(LENGTHS, 1000, 1000) == [[6, 2, 0, 5, 4, 1, 3]]
    assert batches_by_tokens([], 15, 1) == []
    assert batches_by_length(LENGTHS, 3) == [[6, 2, 0], [5, 4, 1], [3]]


def test_padding_on_either_side() -> None:
    batch = left_padded([[7, 8], [9]], 0, torch.device("cpu"))
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[7, 8], [0, 9]],
        "attention_mask": [[1, 1], [0, 1]],
        "position_ids": [[0, 1], [0, 0]],
    }
    assert right_padded([[7, 8, 3], [9]]).tolist() == [[7, 8, 3], [9, 9, 9]]


def test_what_allocators_say() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50)
    assert is_out_of_memory(refused.value)
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        MemoryError("std::bad_alloc"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.04 GB"),
    ):
        assert is_out_of_memory(error)
    for other in (
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        ValueError("out of memory"),
        InterpError("not enough memory"),
    ):
        assert not is_out_of_memory(other)


def test_the_budget_suits_the_device_and_is_halved_from_what_was_spent(caplog: pytest.LogCaptureFixture) -> None:
    assert Budget.of(None, torch.device("cpu")).tokens == PROCESSOR_TOKENS
    assert Budget.of(None, torch.device("cuda", 1)).tokens == ACCELERATOR_TOKENS
    budget = Budget.of(100, torch.device("cpu"))
    with caplog.at_level(logging.WARNING, "interp"):
        for spent, left in ((90, 45), (200, 22), (1, 1)):
            budget.halve(spent)
            assert budget.tokens == max(1, left)
    assert caplog.messages[0] == (
        "out of memory with 90 tokens in a forward pass: going on with at most 45 (batch_tokens)."
    )
    assert len(caplog.messages) == 3
    with pytest.raises(InterpError, match="batch_tokens: expected at least 1, got -3"):
        Budget.of(-3, torch.device("cpu"))

"""What counts as memory that ran out, by what allocators really say, and what becomes of the budget."""

from __future__ import annotations

import logging

import pytest
import torch

from interp.activations.memory import ACCELERATOR_TOKENS, PROCESSOR_TOKENS, Budget, is_out_of_memory
from interp.errors import InterpError


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

"""Batches of prompts: where tokens are, and the numbers that each prompt has alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from interp.activations.prompt_batches import encoded_prompts, prompt_batches, resolved
from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.positions import Position

IDS = [[1, 17, 250, 33, 94], [1, 88, 5], [1, 9, 8, 7]]
Standardized = Callable[[str], StandardizedTransformer]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
@torch.no_grad()
def test_each_prompt_has_the_numbers_that_it_has_alone(standardized: Standardized, family: str, side: str) -> None:
    model = standardized(family)
    (batch,) = prompt_batches(model, IDS, padding_side=side)
    assert batch.rows == [0, 1, 2] and batch.width == 5 and batch.lengths.tolist() == [5, 3, 4]
    assert batch.before.tolist() == ([0, 2, 1] if side == "left" else [0, 0, 0])
    logits = model._module(**batch.inputs).logits
    for row, prompt in enumerate(batch.rows):
        ids = torch.tensor([IDS[prompt]])
        assert batch.inputs["input_ids"][row][batch.own[row]].tolist() == IDS[prompt]
        torch.testing.assert_close(logits[row][batch.own[row]], model._module(input_ids=ids).logits[0])
    columns = batch.columns(torch.tensor([[0, 2], [3, -1], [-1, -1]]))
    assert columns.tolist() == ([[0, 2], [5, -1], [-1, -1]] if side == "left" else [[0, 2], [3, -1], [-1, -1]])


def test_batches_are_of_so_many_prompts(standardized: Standardized) -> None:
    model = standardized("gpt2")
    assert [batch.rows for batch in prompt_batches(model, IDS, batch_size=2)] == [[1, 2], [0]]
    with pytest.raises(InterpError, match="batch_size: expected at least 1, got 0"):
        prompt_batches(model, IDS, batch_size=0)
    with pytest.raises(InterpError, match="padding_side: expected left or right, got 'rigth'"):
        prompt_batches(model, IDS, padding_side="rigth")  # type: ignore[arg-type]


def test_padding_of_an_encoding_is_left_away_on_either_side(standardized: Standardized) -> None:
    model = standardized("gpt2")
    ids = torch.tensor([[1, 17, 250], [1, 88, 0]])
    encoding = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    encoded = encoded_prompts(model, encoding)
    assert [one.input_ids for one in encoded] == [[1, 17, 250], [1, 88]]
    slots, labels = resolved([Position.parse("last"), Position.parse("1:")], encoded)
    assert slots == [[2, 1, 2], [1, 1, -1]]
    assert len(labels) == 3
    with pytest.raises(InterpError, match="expected texts, Prompts or lists of token ids"):
        encoded_prompts(model, [3.5])

"""Padding is kept out of recurrent blocks that transformers tells of no mask."""

from __future__ import annotations

import pytest
import torch

from interp import StandardizedTransformer
from tests.families import build
from tests.tiny import tiny_tokenizer

SHORT, LONG = [1, 40, 41], [1, 17, 250, 33, 94, 301, 77, 210]


@torch.no_grad()
def test_left_padding_changes_nothing_and_without_padding_nothing_is_touched() -> None:
    plain, module = build("recurrent_gemma"), build("recurrent_gemma")
    expected = plain(input_ids=torch.tensor([LONG]), use_cache=False).logits
    alone = plain(input_ids=torch.tensor([SHORT]), use_cache=False).logits[0, -1]
    StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)  # wrapped twice, guarded once
    assert torch.equal(module(input_ids=torch.tensor([LONG]), use_cache=False).logits, expected)
    padding = len(LONG) - len(SHORT)
    ids = torch.tensor([[0] * padding + SHORT, LONG])
    mask = torch.tensor([[0] * padding + [1] * len(SHORT), [1] * len(LONG)])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = dict(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    torch.testing.assert_close(module(**given).logits[0, -1], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module(**given).logits[1], expected[0], atol=1e-5, rtol=1e-5)
    assert (plain(**given).logits[0, -1] - alone).abs().max() > 1e-3, "transformers itself lets padding in"


@torch.no_grad()
def test_a_pass_that_fails_leaves_no_mask_behind() -> None:
    module = build("recurrent_gemma")
    StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    ids = torch.tensor([LONG])
    expected = module(input_ids=ids, use_cache=False).logits
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    handle = module.get_submodule("model.layers.2").register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module(input_ids=ids, attention_mask=mask, use_cache=False)
    handle.remove()
    assert torch.equal(module(input_ids=ids, use_cache=False).logits, expected)

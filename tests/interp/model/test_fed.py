"""Ids and positions that a model has no row for are refused by name; padding that a mask hides may be any token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from interp import StandardizedTransformer
from interp.activations import collect
from interp.errors import InterpError
from interp.lenses import (
    attention_knockout,
    logit_lens,
    patchscope_generate,
    patchscope_lens,
)
from interp.model.verdicts import verdicts_of
from interp.sites import Site
from interp.translators import GivenSequences, TunedLens, evaluate_tuned_lens
from tests.families import build
from tests.tiny import tiny_model, tiny_tokenizer

TEXTS = ["The quick brown fox", "cat"]
IDS: list[list[int]] = tiny_tokenizer()(TEXTS)["input_ids"]
LIMIT = 16


def short(family: str) -> StandardizedTransformer:
    """A model with a table of few positions."""
    changes: dict[str, dict[str, int]] = {"gpt2": {"n_positions": LIMIT}, "llama": {"max_position_embeddings": LIMIT}}
    return StandardizedTransformer(tiny_model(family, **changes[family]), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("name", ["llama", "mamba", "recurrent_gemma"])
@torch.no_grad()
def test_a_pad_token_without_an_embedding(name: str) -> None:
    """As `add_special_tokens({"pad_token": ...})` leaves it: the lenses need none, a trace says what to do."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 400
    model = StandardizedTransformer(build(name), tokenizer=tokenizer)
    last = Site("resid_post", model.num_layers - 1)
    found = collect(model, IDS, [last], [[len(ids) - 1] for ids in IDS])["resid_post"][0, :, 0]
    plain: Any = build(name)
    for row, ids in enumerate(IDS):
        logits = plain(torch.tensor([ids]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(model.readout(found[row]), logits, atol=1e-4, rtol=1e-4)
    message = (
        r"the tokenizer's pad token '\[PAD\]' has the id 400, .* has embeddings for 0 to 399.*pad_token = .*eos_token"
    )
    with pytest.raises(InterpError, match=message), model.trace(TEXTS):
        model.logits.save()
    tokenizer.pad_token = tokenizer.eos_token
    with model.trace(TEXTS):
        logits = model.logits.clone().save()
    for row, ids in enumerate(IDS):
        torch.testing.assert_close(
            logits[row, -1], plain(torch.tensor([ids]), use_cache=False).logits[0, -1], atol=1e-4, rtol=1e-4
        )


def test_ids_without_an_embedding() -> None:
    model = StandardizedTransformer(build("llama"), tokenizer=tiny_tokenizer(), verify=False)
    for ids, wrong in (([1, 400], 400), ([1, -1], -1)):
        with pytest.raises(InterpError, match=f"expected token ids from 0 to 399, got {wrong}"), model.trace([ids]):
            model.logits.save()
    with model.trace([[1, 399]]):
        logits = model.logits.save()
    torch.testing.assert_close(logits, build("llama")(torch.tensor([[1, 399]])).logits)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("gpt2", 256),
        ("opt", 256),
        ("gptj", 256),
        ("llama", None),
        ("bloom", None),
        ("gemma3", None),
        ("phi4_multimodal", None),
    ],
)
def test_positions_that_a_model_has_a_table_for(name: str, limit: int | None) -> None:
    model = StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False)
    config = model._module.config
    known = getattr(config, "n_positions", None) or getattr(config, "max_position_embeddings", None)
    assert model.position_limit == (limit and known)


TOO_LONG: dict[str, Callable[[StandardizedTransformer, list[int]], Any]] = {
    "logit lens": lambda model, ids: logit_lens(model, [[1, 2], ids]),
    "collect": lambda model, ids: collect(model, [[1, 2], ids], [Site("resid_post", 1)], [[0], [0]]),
    "patchscope": lambda model, ids: patchscope_lens(model, "cat", [ids], target_positions="last"),
    "generation": lambda model, ids: patchscope_generate(model, "cat", [ids], max_new_tokens=1),
    "knock-out": lambda model, ids: attention_knockout(model, [ids], {"start": "first"}, window=1),
    "tuned lens": lambda model, ids: evaluate_tuned_lens(
        model, TunedLens.of(model), GivenSequences.of(model.tokenizer, [ids])
    ),
}


@pytest.mark.parametrize("way", TOO_LONG)
def test_a_prompt_beyond_the_table_of_positions(way: str) -> None:
    model = short("gpt2")
    with pytest.raises(InterpError, match=f"has {LIMIT + 1} tokens, GPT2LMHeadModel has {LIMIT} positions"):
        TOO_LONG[way](model, [1] * (LIMIT + 1))
    TOO_LONG[way](model, [1] * LIMIT)
    TOO_LONG[way](short("llama"), [1] * (LIMIT + 1))  # positions that are computed know no end


@torch.no_grad()
def test_a_trace_beyond_the_table_of_positions() -> None:
    model, text = short("gpt2"), "The quick brown fox jumps over the lazy dog."
    length = len(tiny_tokenizer()(text)["input_ids"])
    assert length > LIMIT
    message = f"tokens, GPT2LMHeadModel has {LIMIT} positions"
    with pytest.raises(InterpError, match=f"got {length} {message}"), model.trace([text, "cat"]):
        model.logits.save()
    asked: dict[str, Any] = dict(max_new_tokens=9, do_sample=False, eos_token_id=None)
    with pytest.raises(InterpError, match=f"got {LIMIT + 1} {message}"), model.generate([[1] * (LIMIT - 2)], **asked):
        model.logits.save()
    with pytest.raises(InterpError, match="and 4 more are written behind them"):
        patchscope_generate(model, "cat", [[1] * (LIMIT - 3)], max_new_tokens=5)
    found = patchscope_generate(model, "cat", [[1] * (LIMIT - 3)], max_new_tokens=4)
    assert len(found.ids[0][0]) >= 1


def test_packed_prompts_are_no_longer_than_each() -> None:
    """In one row of more tokens than there are positions."""
    model = short("gpt2")
    prompts = [[1, *range(5, 5 + length)] for length in (12, 9, 14, 3)]
    found = logit_lens(model, prompts)
    assert verdicts_of(model)["prompts in one row"]
    for row, ids in enumerate(prompts):
        own = logit_lens(model, [ids])
        np.testing.assert_allclose(found.entropy[row], own.entropy[0], atol=1e-5)

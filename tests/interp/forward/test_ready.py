"""Lenses refuse a model that draws at random, or that is in the middle of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from interp import InterpError, StandardizedTransformer
from interp.activations import collect
from interp.lenses import (
    Latents,
    attention_knockout,
    attention_object_lens,
    direct_logit_attribution,
    logit_lens,
    patchscope_generate,
    patchscope_grid,
    patchscope_lens,
)
from interp.sites import Site
from interp.translators import GivenSequences, TunedLens, evaluate_tuned_lens
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = [[1, 17, 33, 250], [1, 8]]
WORDS = {"a": [3]}
CALLS: dict[str, Callable[[StandardizedTransformer], Any]] = {
    "collect": lambda model: collect(model, PROMPTS, [Site("resid_post", 1)], [[0], [1]]),
    "logit lens": lambda model: logit_lens(model, PROMPTS),
    "attribution": lambda model: direct_logit_attribution(model, PROMPTS, WORDS),
    "patchscope": lambda model: patchscope_lens(model, PROMPTS, "king"),
    "patchscope of latents": lambda model: patchscope_lens(
        model, Latents(torch.ones(1, 1, 32), [1]), [[1, 2]], [[1]], [[[3]]]
    ),
    "grid": lambda model: patchscope_grid(model, PROMPTS, "king", source_layers=[1], target_layers=[1]),
    "generation": lambda model: patchscope_generate(model, PROMPTS, "king", layers=[1], max_new_tokens=1),
    "knock-out": lambda model: attention_knockout(model, PROMPTS, {"first": "first"}, window=1),
    "attention object": lambda model: attention_object_lens(model, PROMPTS, PROMPTS[::-1]),
    "tuned lens": lambda model: evaluate_tuned_lens(
        model, TunedLens.of(model), GivenSequences.of(model.tokenizer, PROMPTS)
    ),
}


@cache
def gpt2() -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model("gpt2"), tokenizer=tiny_tokenizer(), verify=False)


@pytest.mark.parametrize("call", CALLS)
def test_a_model_in_training_mode_is_refused(call: str) -> None:
    model = gpt2()
    module = model._module
    CALLS[call](model)
    module.train()
    try:
        with pytest.raises(InterpError, match=r"is in training mode.*call `\.eval\(\)`"):
            CALLS[call](model)
    finally:
        module.eval()
    CALLS[call](model)


@pytest.mark.parametrize("call", CALLS)
def test_within_a_trace_of_the_model_is_refused_and_leaves_nothing_behind(call: str) -> None:
    model, run = gpt2(), CALLS[call]
    before = logit_lens(model, PROMPTS).log_prob
    said = r"a trace of GPT2LMHeadModel is open"
    with pytest.raises(InterpError, match=said), torch.no_grad(), model.trace(PROMPTS[0]):
        run(model)
    np.testing.assert_array_equal(logit_lens(model, PROMPTS).log_prob, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model._module.modules())


def test_another_model_may_be_read_within_a_trace() -> None:
    model = gpt2()
    other = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), verify=False)
    alone = patchscope_lens(other, PROMPTS, "king").top_log_prob
    with torch.no_grad(), model.trace(PROMPTS[0]):
        before = model.read("resid_post.1").clone().save()
        within = patchscope_lens(other, PROMPTS, "king").top_log_prob
        np.testing.assert_array_equal(within, alone)
        after = model.read("resid_post.2").clone().save()
    assert before.shape == after.shape == (1, len(PROMPTS[0]), model.hidden_size)

"""Edits that stay (`model.edit`) are made in every lens, also where the model was read without them before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from interp import StandardizedTransformer
from interp.activations import collect
from interp.lenses import (
    attention_knockout,
    attention_object_lens,
    direct_logit_attribution,
    logit_lens,
    patchscope_generate,
    patchscope_grid,
    patchscope_lens,
)
from interp.model.verdicts import verdicts_of
from interp.sites import Site
from tests.tiny import tiny_model, tiny_tokenizer

HEADER = list(range(20, 60))  # what all prompts begin with, long enough to be worth sharing
PROMPTS = [[1, *HEADER, 17, 33, 250], [1, *HEADER, 8], [1, *HEADER, 99, 98, 97, 96]]
WORDS = {"a": [3, 4], "b": [100]}
LENSES: dict[str, Callable[[StandardizedTransformer], Any]] = {
    "logit lens": lambda model: logit_lens(model, PROMPTS, targets=WORDS),
    "attribution": lambda model: direct_logit_attribution(model, PROMPTS, WORDS, sites="attn_out.*"),
    "patchscope": lambda model: patchscope_lens(model, PROMPTS, "king", targets=WORDS),
    "from layer": lambda model: patchscope_lens(model, PROMPTS, "king", patch="from_layer", targets=WORDS),
    "grid": lambda model: patchscope_grid(model, PROMPTS, "king", source_layers=[1, 3], targets=WORDS),
    "knock-out": lambda model: attention_knockout(model, PROMPTS, {"f": "1:5"}, window=2, targets=WORDS),
    "attention object": lambda model: attention_object_lens(model, PROMPTS, PROMPTS[::-1], targets=WORDS),
}


def standardized() -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), verify=False)


@cache
def read_as_it_is() -> StandardizedTransformer:
    """A model of which everything has been found out."""
    model = standardized()
    for lens in LENSES.values():
        lens(model)
    generated(model), collected(model)
    assert verdicts_of(model)["walk"] and verdicts_of(model)["prefixes"]
    return model


@cache
def silenced() -> StandardizedTransformer:
    """The same whose layer 2 has no MLP, by its weights."""
    model = standardized()
    model._module.get_submodule("model.layers.2.mlp.down_proj").weight.data.zero_()
    return model


def edited() -> StandardizedTransformer:
    """The same by an edit of a copy, which knows what has been found out of the model."""
    with read_as_it_is().edit() as (_, copy):
        copy.write("mlp_out.2", torch.zeros_like(copy.read("mlp_out.2")))
    return copy


def generated(model: StandardizedTransformer) -> Any:
    return patchscope_generate(model, PROMPTS, "king", layers=[0, 3], max_new_tokens=5).ids


def collected(model: StandardizedTransformer) -> torch.Tensor:
    ends = [[len(ids) - 1, 2] for ids in PROMPTS]
    return collect(model, PROMPTS, [Site("resid_post", 3)], ends)["resid_post"]


@pytest.mark.parametrize("lens", LENSES)
def test_a_lens_reads_the_edited_model(lens: str) -> None:
    plain, wanted = LENSES[lens](read_as_it_is()).arrays(), LENSES[lens](silenced()).arrays()
    found = LENSES[lens](edited()).arrays()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4, err_msg=name)
    name = "contribution" if lens == "attribution" else "log_prob"
    assert np.abs(plain[name] - wanted[name]).max() > 1e-2
    again = LENSES[lens](read_as_it_is()).arrays()  # the model itself is as it was
    np.testing.assert_array_equal(again[name], plain[name])


def test_generation_and_collection_run_the_edited_model() -> None:
    model = edited()
    assert generated(model) == generated(silenced()) != generated(read_as_it_is())
    torch.testing.assert_close(collected(model), collected(silenced()), atol=1e-5, rtol=1e-4)
    assert (collected(model) - collected(read_as_it_is())).abs().max() > 1e-2


def test_the_slow_way_is_said_once_and_left_with_the_edits(caplog: pytest.LogCaptureFixture) -> None:
    model, lens = standardized(), LENSES["patchscope"]
    plain = lens(model).log_prob
    with model.edit(inplace=True):
        model.write("mlp_out.2", torch.zeros_like(model.read("mlp_out.2")))
    with caplog.at_level(logging.WARNING, logger="interp"):
        first, second = lens(model).log_prob, lens(model).log_prob
    assert [record.message for record in caplog.records] == [
        "LlamaForCausalLM: prompts are run as a whole (slow): a fast way would leave out the model's hooks or edits."
    ]
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - plain).max() > 1e-2
    model.clear_edits()
    np.testing.assert_array_equal(lens(model).log_prob, plain)
    assert verdicts_of(model)["walk"]

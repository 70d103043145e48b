"""Collecting in a remote session: what is given is taken and refused as it is here."""

from __future__ import annotations

import pytest
import torch

from interp import StandardizedTransformer
from interp.activations import collect
from interp.errors import InterpError
from interp.sites import Site
from tests.tiny import tiny_model, tiny_tokenizer

SITES = [Site("resid_post", 1), Site("resid_post", 3)]


@pytest.fixture(scope="module")
def model() -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())


def test_an_encoding_is_read_without_its_padding(model: StandardizedTransformer) -> None:
    encoding = model.tokenizer(["The quick brown fox", "cat"], padding=True, return_tensors="pt")
    found = collect(model, encoding, SITES, [[0, 1], [0, -1]], remote="local")["resid_post"]
    for row, (ids, mask) in enumerate(zip(encoding["input_ids"], encoding["attention_mask"], strict=True)):
        with torch.no_grad():
            states = model._module(ids[mask.bool()][None], output_hidden_states=True).hidden_states
        for layer, site in enumerate(SITES[:1]):  # transformers' last state is behind the final norm
            assert site.layer is not None
            torch.testing.assert_close(found[layer, row, 0], states[site.layer + 1][0, 0], atol=1e-5, rtol=1e-4)
    assert found[:, 1, 1].isnan().all() and not found[:, 0].isnan().any()


def test_what_the_model_cannot_be_fed_is_refused_before_a_session_begins(model: StandardizedTransformer) -> None:
    for wrong in ([[1, 4000]], [[-1]]):
        with pytest.raises(InterpError, match="expected token ids from 0 to 399"):
            collect(model, wrong, SITES, [[0]], remote="local")

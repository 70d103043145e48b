"""A residual stream taken apart: the parts sum to it, and to the logits, in families that add, scale and norm apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import StandardizedTransformer
from interp.activations import ActivationCache
from interp.errors import InterpError
from interp.lenses import direct_logit_attribution
from tests.families import build as build_family
from tests.interp.reference import wrapped
from tests.tiny import tiny_tokenizer

RAGGED = [[1, 17, 250, 33, 94, 301, 7], [1, 88, 5], [1, 260, 71, 12, 9]]
SITES = "embed resid_post.* attn_out.* mlp_out.* z.* mlp_post.*"
CASES = ["llama", "gpt2", "gemma2", "cohere", "gpt_neox", "granite"]


def cached(case: str) -> tuple[StandardizedTransformer, ActivationCache]:
    """A model, and the cache of prompts of different lengths."""
    if case not in MODELS:
        model = wrapped(case) if case != "granite" else _family(case)
        MODELS[case] = model, model.run_with_cache(RAGGED, sites=SITES)[1]
    return MODELS[case]


def _family(name: str) -> StandardizedTransformer:
    return StandardizedTransformer(build_family(name), tokenizer=tiny_tokenizer())


MODELS: dict[str, tuple[StandardizedTransformer, ActivationCache]] = {}


def close(found: Tensor, expected: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_parts_sum_to_the_stream(case: str) -> None:
    model, cache = cached(case)
    final = cache["resid_post.-1"]
    layers = cache.decomposed_residual()
    close(layers.values.sum(0), final)
    assert layers.labels[:3] == ("embed", "attn_out.0", "mlp_out.0") and layers.labels[-1] == "remainder"
    assert float(layers["remainder"].nan_to_num().abs().max()) < 2e-5  # nothing else writes into the stream
    half = cache.decomposed_residual(2)
    close(half.values.sum(0), cache["resid_post.1"])
    assert float(half["remainder"].nan_to_num().abs().max()) < 2e-5 and len(half) == 6
    pieces = cache.decomposed_residual(parts=["embed", "heads", "neurons"])
    close(pieces.values.sum(0), final)
    heads, neurons = model.num_heads, cache["mlp_post.0"].shape[-1]
    assert len(pieces) == 1 + model.num_layers * (heads + neurons) + 1
    # What remains of heads and neurons is biases, the same at every token.
    rest = pieces["remainder"]
    first = rest[0, 0].expand_as(rest)
    close(rest, torch.where(rest.isnan(), torch.nan, first), atol=1e-4)
    _, own = model.run_with_cache(RAGGED, sites="head_out.3")
    last = pieces.values[[pieces.labels.index(f"head_out.3.h{head}") for head in range(heads)]]
    close(last, own["head_out.3"].permute(2, 0, 1, 3))


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_streams_before_each_layer(case: str) -> None:
    model, cache = cached(case)
    stack = cache.accumulated_residual()
    assert stack.labels == ("resid_pre.0", "resid_pre.1", "resid_pre.2", "resid_pre.3", "resid_post.3")
    close(stack["resid_pre.2"], cache["resid_post.1"])
    normed = cache.accumulated_residual(apply_norm=True)
    _, expected = model.run_with_cache(RAGGED, sites="final_norm")
    close(normed["resid_post.3"], expected["final_norm"])
    assert len(cache.accumulated_residual(2)) == 3
    with pytest.raises(InterpError, match=r"no 'resid_mid\.0'"):
        cache.accumulated_residual(include_middle=True)
    _, more = model.run_with_cache(RAGGED, sites="resid_pre.* resid_mid.* resid_post.3")
    middle = more.accumulated_residual(include_middle=True)
    assert middle.labels[:3] == ("resid_pre.0", "resid_mid.0", "resid_pre.1") and len(middle) == 9
    frame = middle.to_frame()
    assert len(frame) == 9 * sum(map(len, RAGGED)) and set(frame.columns) == {"part", "example", "position", "norm"}


@pytest.mark.parametrize("case", CASES)
def test_contributions_sum_to_the_logits(case: str) -> None:
    model, cache = cached(case)
    targets = {"one": 7, "each": [9, 10, 11]}
    found = cache.logit_attribution(targets)
    there = ~np.isnan(found.logit)
    total = found.contribution.sum(2) + found.constant[:, None]
    np.testing.assert_allclose(total[there], found.logit[there], rtol=1e-3, atol=1e-4)
    logits, _ = model.run_with_cache(RAGGED, sites="embed")
    softcap = model.tail.softcap
    own = logits[..., 7] if softcap is None else torch.atanh(logits[..., 7] / softcap) * softcap
    np.testing.assert_allclose(found.logit[..., 0], own, rtol=1e-3, atol=1e-4)
    # Of the last token, the lens says the same.
    lens = direct_logit_attribution(model, RAGGED, [[[7], [9]], [[7], [10]], [[7], [11]]])
    for row, ids in enumerate(RAGGED):
        np.testing.assert_allclose(found.contribution[row, len(ids) - 1], lens.contribution[row], rtol=1e-3, atol=1e-4)
    pieces = cache.logit_attribution(targets, ["embed", "heads", "neurons"])
    stack = cache.decomposed_residual(parts=["embed", "heads", "neurons"])
    by_stack = cache.logit_attribution(targets, stack=stack)
    np.testing.assert_allclose(pieces.contribution, by_stack.contribution[:, :, :-1], rtol=1e-3, atol=1e-4)
    assert pieces.coordinates["site"] == by_stack.coordinates["site"][:-1]


def test_the_parts_that_add_the_most() -> None:
    model, _ = cached("llama")
    _, cache = model.run_with_cache(RAGGED, sites=SITES, positions="last")
    found = cache.logit_attribution({"up": 7}, "heads")
    assert found.axes == ("example", "site")
    for largest, key in (("both", np.abs), ("positive", lambda x: x), ("negative", np.negative)):
        top = found.top_k(3, largest=largest)  # type: ignore[arg-type]
        assert len(top) == 3 * len(RAGGED) and top["place"].tolist() == [0, 1, 2] * len(RAGGED)
        for row in range(len(RAGGED)):
            best = np.argsort(-key(found.contribution[row, :, 0]), kind="stable")[:3]
            names = [found.coordinates["site"][index] for index in best]
            assert top[top["example"] == row]["site"].tolist() == names
    with pytest.raises(InterpError, match="expected both"):
        found.top_k(3, largest="most")  # type: ignore[arg-type]


def test_targets_are_tokens() -> None:
    model, cache = cached("llama")
    word = model.tokenizer.decode([301])
    by_text, by_id = cache.logit_attribution(word), cache.logit_attribution(301)
    np.testing.assert_array_equal(by_text.contribution, by_id.contribution)
    for targets, said in (
        ("The quick brown fox", "a text of one token"),
        ([1, 2], "one for each of 3 examples"),
        ({}, "at least one token"),
        (5000, "outside the vocabulary"),
    ):
        with pytest.raises(InterpError, match=said):
            cache.logit_attribution(targets)  # type: ignore[arg-type]


def test_what_cannot_be_taken_apart_is_refused() -> None:
    model, cache = cached("llama")
    with pytest.raises(InterpError, match="Did you mean 'neurons'"):
        cache.decomposed_residual(parts="neuron")
    with pytest.raises(InterpError, match="heads are parts of attention"):
        cache.decomposed_residual(parts=["attention", "heads"])
    with pytest.raises(InterpError, match="expected one of the model"):
        cache.decomposed_residual(9)
    _, few = model.run_with_cache(RAGGED, sites="resid_post.*")
    with pytest.raises(InterpError, match=r"no '(embed|resid_pre\.0)'"):
        few.decomposed_residual()
    with pytest.raises(InterpError, match=r"no 'z\.0'"):
        few.decomposed_residual(parts="heads")
    mixture = wrapped("mixtral")
    _, routed = mixture.run_with_cache(RAGGED, sites="resid_post.*")
    with pytest.raises(InterpError, match="mixture of experts"):
        routed.decomposed_residual(parts="neurons")

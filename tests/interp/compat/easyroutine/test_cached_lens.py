"""`LogitLens` on caches: layers and heads with the last norm's scale held, tokens, shares, a tuned lens, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.compat.easyroutine import HookedModel, LogitLens
from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.translators import TunedLens
from tests.interp.compat.easyroutine.edited_by_hand import IDS, batch_of

FLAGS: dict[str, Any] = dict(
    extract_resid_out=True, extract_attn_out=True, extract_head_out=True, extract_last_layernorm=True
)


def test_layers_and_heads_are_normed_as_the_last_stream_is(llama: HookedModel, by_transformers: Any) -> None:
    cache = llama.forward(batch_of(IDS), ["last", "first"], save_logits=True, **FLAGS)
    lens = LogitLens.from_model(llama)
    found = lens.compute(cache, "resid_out_{i}")
    assert list(found) == [f"logit_lens_resid_out_{layer}" for layer in range(4)] and repr(lens).startswith(
        "LogitLens("
    )
    torch.testing.assert_close(found["logit_lens_resid_out_3"], cache["logits"], rtol=1e-4, atol=1e-4)
    norm, head = by_transformers.model.norm, by_transformers.lm_head
    scale = (cache["resid_out_3"].pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    for key in ("resid_out_1", "head_out_L2H1"):
        value = cache[key].as_subclass(torch.Tensor)
        expected = head(value / scale * norm.weight)
        torch.testing.assert_close(lens.compute(cache, key)[f"logit_lens_{key}"], expected, rtol=1e-4, atol=1e-4)
        bare = lens.compute(cache, key, apply_norm=False)[f"logit_lens_{key}"]
        torch.testing.assert_close(bare, head(value), rtol=1e-4, atol=1e-4)
    heads = lens.compute(cache, "head_out_L{i}H{j}")
    assert list(heads)[4] == "logit_lens_head_out_L1H0" and len(heads) == 16
    summed = sum(heads[f"logit_lens_head_out_L1H{head}"] for head in range(4))
    torch.testing.assert_close(summed, lens.compute(cache, "attn_out_1")["logit_lens_attn_out_1"], rtol=1e-4, atol=1e-4)
    probabilities = lens.compute(cache, "resid_out_3", apply_softmax=True)["logit_lens_resid_out_3"]
    torch.testing.assert_close(probabilities, cache["logits"].softmax(-1), rtol=1e-4, atol=1e-5)


def test_tokens_and_shares(llama: HookedModel) -> None:
    cache = llama.forward(batch_of(IDS), ["last", "last-2"], save_logits=True, **FLAGS)
    lens, logits = LogitLens.from_model(llama), cache["logits"]
    both = lens.compute(cache, "resid_out_3", [(5, 6), (7, 8)])["logit_lens_resid_out_3"]
    expected = torch.stack([logits[0, :, 5] - logits[0, :, 6], logits[1, :, 7] - logits[1, :, 8]])
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-4)
    one = lens.compute(cache, "resid_out_3", [5, 7])["logit_lens_resid_out_3"]
    torch.testing.assert_close(one, torch.stack([logits[0, :, 5], logits[1, :, 7]]), rtol=1e-4, atol=1e-4)
    share = lens.compute(cache, "resid_out_3", [(5, 6), (7, 8)], metric="accuracy")["logit_lens_resid_out_3"]
    assert share.tolist() == (expected > 0).float().mean(0).tolist()


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_norms_and_tails(hooked: Callable[[str], HookedModel], family: str) -> None:
    model = hooked(family)
    cache = model.forward(batch_of(IDS), ["all"], save_logits=True, **FLAGS)
    found = LogitLens.from_model(model).compute(cache, "resid_out_3")["logit_lens_resid_out_3"]
    torch.testing.assert_close(found, cache["logits"], rtol=1e-3, atol=1e-4, equal_nan=True)


def test_a_tuned_lens(llama: HookedModel, tmp_path: Path) -> None:
    model: StandardizedTransformer = llama.standardized
    tuned = TunedLens.of(model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    tuned.save(tmp_path)
    lens = LogitLens.from_tuned_lens(tmp_path, llama)
    cache = llama.forward(
        batch_of(IDS), ["last"], extract_last_layernorm=True, extract_resid_out=True, extract_attn_out=True
    )
    found = lens.compute(cache, "resid_out_{i}")
    expected = model.readout(tuned.translated(cache["resid_out_1"], 1)).detach()
    torch.testing.assert_close(found["logit_lens_resid_out_1"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["logit_lens_resid_out_3"][:, 0], cache["logits"], rtol=1e-4, atol=1e-4)
    with pytest.raises(InterpError, match="the tuned lens translates resid_out"):
        lens.compute(cache, "attn_out_1")


def test_refuses(llama: HookedModel) -> None:
    cache = llama.forward(batch_of(IDS), ["last"], extract_attn_pattern=True, **FLAGS)
    lens = LogitLens.from_model(llama)
    refused: list[tuple[dict[str, Any], str]] = [
        (dict(target_key="resid_oot_{i}"), "the cache has no 'resid_oot_{i}'"),
        (dict(target_key="pattern_L0H0"), r"expected \(example, position, 32\)"),
        (dict(metric="logit_dif"), "Did you mean 'logit_diff'"),
        (dict(token_directions=[1]), "for each of 2 examples"),
        (dict(token_directions=[1, 2], metric="accuracy"), "two token ids"),
        (dict(token_directions=[1, 2], apply_softmax=True), "is of the whole vocabulary"),
    ]
    for given, message in refused:
        with pytest.raises(InterpError, match=message):
            lens.compute(**{"activations": cache, "target_key": "resid_out_1", **given})
    without = llama.forward(batch_of(IDS), extract_resid_out=True)
    with pytest.raises(InterpError, match="Extract it"):
        lens.compute(without, "resid_out_1")
    without["last_layernorm"] = {name: value[:1] for name, value in cache["last_layernorm"].items()}
    with pytest.raises(InterpError, match="Extract both together"):
        lens.compute(without, "resid_out_1")

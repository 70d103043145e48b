"""Direct logit attribution: every contribution against its twin by hand, and the sum against the model's own logits."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import InterpError
from interp.lenses import direct_logit_attribution
from interp.model import StandardizedTransformer
from interp.results import Attribution
from tests.families import build
from tests.interp.lenses.plain import TOLD, plain
from tests.tiny import tiny_tokenizer

PROMPTS = [[1, 17, 33, 250, 9, 8, 31], [1, 8], [1, 99, 98, 97, 96]]
TARGETS = [{"one": [7 + n], "two": [100 + n, 200]} for n in range(len(PROMPTS))]
# Beside those of `TOLD`, families whose sum goes another way: scales of the residual stream itself, parts behind the
# MLP, mixers, biases and modules between norm and head, a norm that runs twice, none at all.
FURTHER = [
    "gemma3_text", "gemma4_text", "bitnet", "hyperclovax", "minicpm3", "olmo", "nemotron", "starcoder2", "nanochat",
    "cohere2", "bloom", "falcon", "falcon_new", "mpt", "opt", "opt_no_final_norm", "codegen", "deepseek_v3",
    "granitemoeshared", "qwen3_moe", "gpt_oss", "mamba", "jamba", "falcon_h1", "granitemoehybrid", "recurrent_gemma",
    "qwen3_next", "gemma3",
]  # fmt: skip


@cache
def standardized(family: str, dtype: torch.dtype = torch.float32) -> StandardizedTransformer:
    return StandardizedTransformer(build(family).to(dtype), tokenizer=tiny_tokenizer(), verify=False)


@pytest.mark.parametrize("family", TOLD)
def test_equals_the_twin(family: str) -> None:
    twin = plain(family)
    result = direct_logit_attribution(standardized(family), PROMPTS, TARGETS, batch_tokens=20)
    assert result.along("site")[0] == "embed" and len(result.along("site")) == 9
    for example, (ids, targets) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        values, logits = twin.run(ids)
        for group, tokens in enumerate(targets.values()):
            parts = [
                np.mean([twin.contribution(values[str(site)][-1], values["last"][-1], token) for token in tokens])
                for site in result.along("site")
            ]
            np.testing.assert_allclose(result.contribution[example, :, group], parts, atol=1e-5)
            own = np.mean(twin.uncapped(logits[-1])[tokens])
            np.testing.assert_allclose(result.logit[example, group], own, atol=1e-5)
            constant = np.mean([twin.constant(token) for token in tokens])
            np.testing.assert_allclose(result.constant[example, group], constant, atol=1e-5)
            np.testing.assert_allclose(sum(parts) + constant, own, atol=1e-5)
    np.testing.assert_allclose(result.remainder, 0, atol=1e-5)


@pytest.mark.parametrize("family", [*TOLD, *FURTHER])
def test_contributions_add_up_to_the_logits_of_the_plain_model(family: str) -> None:
    result = direct_logit_attribution(
        standardized(family), PROMPTS, TARGETS, positions=["first", "last"], batch_tokens=20
    )
    total = result.contribution.sum(2) + result.constant[:, None]
    softcap = standardized(family).tail.softcap
    model = build(family)
    for example, (ids, targets) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, [0, -1]].double()
        if softcap is not None:
            logits = softcap * torch.atanh(logits / softcap)
        own = np.stack([logits[:, tokens].mean(1).numpy() for tokens in targets.values()], axis=1)
        np.testing.assert_allclose(total[example], own, atol=2e-5)
        np.testing.assert_allclose(result.logit[example], own, atol=2e-5)
    np.testing.assert_allclose(result.remainder, 0, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi", "granite"])
def test_heads_add_up_to_their_attention(family: str) -> None:
    model = standardized(family)
    heads = direct_logit_attribution(model, PROMPTS, TARGETS, sites="head_out.*")
    whole = direct_logit_attribution(model, PROMPTS, TARGETS, sites="attn_out.*")
    assert len(heads.along("site")) == 16 and heads.along("site")[5] == "head_out.1.h1"
    attention = plain(family).layers[1].get_submodule(plain(family).told.projection)
    if attention.bias is None:  # what the bias adds is no head's
        np.testing.assert_allclose(heads.contribution.reshape(3, 4, 4, 2).sum(2), whole.contribution, atol=1e-5)
        np.testing.assert_allclose(heads.remainder, whole.remainder, atol=1e-5)
    else:
        biases = [plain(family).layers[i].get_submodule(plain(family).told.projection).bias for i in range(4)]
        for example, (ids, targets) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
            last = plain(family).run(ids)[0]["last"][-1]
            for group, tokens in enumerate(targets.values()):
                for layer in range(4):
                    bias = np.mean([plain(family).contribution(biases[layer].detach(), last, t) for t in tokens])
                    found = heads.contribution[example, 4 * layer : 4 * layer + 4, group].sum() + bias
                    assert found == pytest.approx(whole.contribution[example, layer, group], abs=1e-5)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("openai-gpt", r"goes through a norm \(ln_1 at attention of layer 0\)"),
        ("bloom_post_norm", r"goes through a norm \(input_layernorm"),
        ("opt_350m", r"goes through a norm \(self_attn_layer_norm"),
        ("modernbert-decoder", "ModernBertDecoderPredictionHead between its final norm and its logits"),
    ],
)
def test_models_that_are_no_sum_are_refused_with_the_reason(family: str, reason: str) -> None:
    with pytest.raises(InterpError, match=reason):
        direct_logit_attribution(standardized(family), PROMPTS, TARGETS)


def test_a_norm_that_is_not_linear_is_refused() -> None:
    class Curved(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.tanh()

    module = build("llama")
    module.model.norm = Curved()
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    with pytest.raises(InterpError, match="final norm Curved is not linear once its scale is held"):
        direct_logit_attribution(model, PROMPTS, TARGETS)


def test_bfloat16_is_near_float32() -> None:
    """Stated tolerance: 0.1 logits, of logits up to 3; bfloat16 has 8 bits of mantissa, and there are four layers."""
    for family in ("llama", "gemma2", "gpt2"):
        half = direct_logit_attribution(standardized(family, torch.bfloat16), PROMPTS, TARGETS)
        full = direct_logit_attribution(standardized(family), PROMPTS, TARGETS)
        np.testing.assert_allclose(half.contribution, full.contribution, atol=0.1)
        np.testing.assert_allclose(half.remainder, 0, atol=0.1)


def test_float64_is_float32() -> None:
    """Its norms count in float32, which the final one is not refused for."""
    double = direct_logit_attribution(standardized("llama", torch.float64), PROMPTS, TARGETS)
    single = direct_logit_attribution(standardized("llama"), PROMPTS, TARGETS)
    np.testing.assert_allclose(double.contribution, single.contribution, atol=1e-4)


def test_dtypes_that_torch_is_told_to_use_elsewhere_change_no_results_dtype() -> None:
    wanted = direct_logit_attribution(standardized("llama"), PROMPTS, TARGETS)
    torch.set_default_dtype(torch.float64)
    try:
        found = direct_logit_attribution(standardized("llama"), PROMPTS, TARGETS)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(found.contribution, wanted.contribution, atol=1e-5)
    np.testing.assert_allclose(found.constant, wanted.constant, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = direct_logit_attribution(standardized("llama"), PROMPTS, TARGETS)
    np.testing.assert_allclose(half.contribution, wanted.contribution, atol=0.1)


def test_groups_without_tokens_and_positions_that_are_not_there() -> None:
    targets: list[Any] = [{"one": [7]}, {"two": [8]}, {"one": [7], "two": [8]}]
    result = direct_logit_attribution(standardized("llama"), PROMPTS, targets, positions="all", sites="embed mlp_out.1")
    assert result.axes == ("example", "position", "site") and result.contribution.shape == (3, 7, 2, 2)
    assert np.isnan(result.contribution[0, ..., 1]).all() and np.isnan(result.contribution[1, 2:]).all()
    assert not np.isnan(result.contribution[2, :5]).any() and np.isnan(result.contribution[2, 5:]).all()
    rest = result.logit - result.contribution.sum(2) - result.constant[:, None]
    np.testing.assert_allclose(result.remainder, rest, atol=1e-6)
    assert len(result.to_frame()) == (7 + 2 + 2 * 5) * 2


def test_tables_and_files(tmp_path: Path) -> None:
    result = direct_logit_attribution(standardized("llama"), PROMPTS, TARGETS)
    frame = result.to_frame()
    assert list(frame.columns) == ["example", "site", "group", "contribution"] and len(frame) == 3 * 9 * 2
    row = frame[(frame.example == 2) & (frame.site == "mlp_out.3") & (frame.group == "two")]
    assert row.contribution.item() == result.select(example=2, site="mlp_out.3", group="two").contribution.item()
    result.save(tmp_path / "a.safetensors")
    loaded = Attribution.load(tmp_path / "a.safetensors")
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    np.testing.assert_array_equal(loaded.contribution, result.contribution)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": "resid_post.*"}, "'resid_post.0' cannot be read out here. Expected embed, attn_out"),
        ({"sites": "attn_out.1 head_out.1.h0"}, "head_out.1.h0 is a part of attn_out.1"),
        ({"targets": None}, "expected targets"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InterpError, match=message):
        direct_logit_attribution(standardized("llama"), PROMPTS, **{"targets": TARGETS, **changes})

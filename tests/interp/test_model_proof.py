"""The proof at load finds wrong records and broken models, and lets right ones through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

import interp.architectures
from interp import StandardizedTransformer
from interp.architectures import ARCHITECTURES
from interp.errors import InterpError
from tests.interp.reference import CASES, IDS, build, read_all
from tests.tiny import _LLAMA_LIKE, tiny_tokenizer


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("gemma2", {"softcap": None}, r"readout\(resid_post\) == logits does not hold at layer 3: expected .*, got"),
        ("gemma2", {"attention_added": "self_attn"}, r"resid_mid == resid_pre \+ attn_out does not hold at layer 0"),
        ("gemma2", {"mlp_added": "mlp"}, r"resid_post == resid_mid \+ mlp_out does not hold at layer 0"),
        ("gemma2", {"final_norm": "model.layers.0.input_layernorm"}, r"readout\(resid_post\) == logits"),
        ("cohere", {"logit_scale": None}, r"readout\(resid_post\) == logits"),
        ("cohere", {"parallel": False}, r"resid_mid == resid_pre \+ attn_out"),
        ("llama", {"parallel": True, "mlp_added": "post_attention_layernorm"}, r"resid_pre \+ attn_out \+ mlp_out"),
    ],
)
def test_a_wrong_record_is_found_out(
    case: str, change: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_type = CASES[case][0]
    records = tuple(replace(r, **change) if model_type in r.model_types else r for r in ARCHITECTURES)  # type: ignore[arg-type]
    monkeypatch.setattr(interp.architectures, "ARCHITECTURES", records)
    with pytest.raises(InterpError, match=message):
        StandardizedTransformer(build(case), tokenizer=tiny_tokenizer())
    StandardizedTransformer(build(case), tokenizer=tiny_tokenizer(), verify=False)


def test_a_resid_mid_that_cannot_be_written_is_found_out() -> None:
    class Copying(torch.nn.Module):
        """Reads a copy of the residual stream, as a fused kernel might: writing its input misses the stream."""

        def __init__(self, norm: torch.nn.Module) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, hidden_states: Tensor) -> Tensor:
            return self.norm(hidden_states)

    module = build("llama")
    layer = module.get_submodule("model.layers.2")
    layer.post_attention_layernorm = Copying(layer.get_submodule("post_attention_layernorm"))
    layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: (args[0].clone(),))
    with pytest.raises(InterpError, match=r"resid_post == written resid_mid \+ mlp_out does not hold at layer 2"):
        StandardizedTransformer(module, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("case", ["qwen2", "gemma2", "gpt_neox", "cohere"])
@torch.no_grad()
def test_the_proof_holds_in_every_dtype(case: str, dtype: torch.dtype) -> None:
    model = StandardizedTransformer(build(case).to(dtype), tokenizer=tiny_tokenizer())
    values = read_all(model, ["resid_post.3", "logits"], input_ids=IDS)
    assert values["logits"].dtype == model.dtype == dtype
    assert torch.equal(model.readout(values["resid_post.3"].float()), values["logits"]) or dtype == torch.float64


def test_numbers_that_overflow_are_found_out() -> None:
    module = build("llama")
    with torch.no_grad():
        module.get_submodule("model.layers.1.mlp.down_proj").weight.fill_(float("inf"))
    with pytest.raises(InterpError, match=r"does not hold at layer 1: .*numbers overflow"):
        StandardizedTransformer(module, tokenizer=tiny_tokenizer())


def _tiny(model_type: str, **changes: object) -> torch.nn.Module:
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**{**_LLAMA_LIKE, **changes})).eval()


@torch.no_grad()
def test_an_unknown_family_that_computes_as_llama_does_is_taken() -> None:
    module = _tiny("starcoder2")
    expected = module(input_ids=IDS).logits
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    assert model.architecture.family == "starcoder2"
    values = read_all(model, ["resid_post.3", "logits"], input_ids=IDS)
    assert torch.equal(values["logits"], expected)
    assert torch.equal(model.readout(values["resid_post.3"]), expected)


def test_an_unknown_family_that_only_looks_like_llama_is_refused() -> None:
    with pytest.raises(InterpError, match=r"unknown architecture 'granite'.*does not compute as Llama.*Known: cohere"):
        StandardizedTransformer(_tiny("granite", residual_multiplier=0.5), tokenizer=tiny_tokenizer(), verify=False)

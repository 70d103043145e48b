"""The proof at load finds wrong records and broken models, and lets right ones through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

import interp.architectures.find
from interp import StandardizedTransformer
from interp.architectures import ARCHITECTURES, Sublayer
from interp.errors import InterpError
from interp.model.proof import prove
from tests.interp.reference import CASES, IDS, build, read_all
from tests.tiny import _LLAMA_LIKE, tiny_tokenizer

ATTENTION = Sublayer("self_attn", projection="self_attn.o_proj")
MLP = Sublayer("mlp", projection="mlp.down_proj")


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("gemma2", {"softcap": None}, r"readout\(resid_post\) == logits does not hold at layer 3: expected .*, got"),
        (
            "gemma2",
            {"attention": ATTENTION},
            r"resid_mid == resid_pre \+ attn_out does not hold at layer 0.*attn_added_name",
        ),
        ("gemma2", {"mlp": MLP}, r"resid_post == resid_mid \+ mlp_out does not hold at layer 0.*mlp_added_name"),
        ("gemma2", {"final_norm": "model.layers.0.input_layernorm"}, r"readout\(resid_post\) == logits.*ln_final_name"),
        ("cohere", {"logit_scale": None}, r"readout\(resid_post\) == logits"),
        ("cohere", {"parallel": False, "middle": "mlp"}, r"resid_mid == resid_pre \+ attn_out"),
        (
            "llama",
            {"parallel": True, "middle": None, "mlp": Sublayer("post_attention_layernorm")},
            r"resid_post == resid_pre \+ attn_out \+ mlp_out",
        ),
        ("gpt2", {"attention": Sublayer("attn", projection="attn.c_attn")}, r"sum of head_out \+ bias == attn_out"),
    ],
)
def test_a_wrong_record_is_found_out(
    case: str, change: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_type = CASES[case][0]
    records = tuple(replace(r, **change) if model_type in r.model_types else r for r in ARCHITECTURES)  # type: ignore[arg-type]
    monkeypatch.setattr(interp.architectures.find, "ARCHITECTURES", records)
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


@torch.no_grad()
def test_the_proofs_of_a_good_model_are_a_table() -> None:
    model = StandardizedTransformer(build("llama"), tokenizer=tiny_tokenizer(), verify=False)
    proofs = {proof.identity: proof for proof in prove(model, attention=True)}
    assert all(proof.holds for proof in proofs.values())
    assert proofs["resid_mid == resid_pre + attn_out"].layers == 4
    assert proofs["resid_pre == resid_post of the layer before"].layers == 3
    assert proofs["rows of pattern sum to 1"].layers == 4
    for kind in ("embed", "q", "scores", "pattern", "z", "head_out", "resid_mid", "mlp_post", "final_norm", "logits"):
        proof = proofs[f"an edit of {kind} changes the logits"]
        assert proof.difference > 100 * proof.allowed
    assert set(prove(model)) < set(proofs.values()) | set(prove(model))
    assert not any("pattern" in proof.identity for proof in prove(model))


def test_an_edit_that_is_lost_is_found_out() -> None:
    """A model whose attention goes nowhere: what is written at its sites cannot change the logits."""
    module = build("llama")
    with torch.no_grad():
        for layer in range(4):
            module.get_submodule(f"model.layers.{layer}.self_attn.o_proj").weight.zero_()
    with pytest.raises(InterpError, match="an edit of attn_in changes the logits does not hold at layer 2"):
        StandardizedTransformer(module, tokenizer=tiny_tokenizer())


def _unknown(model_type: str) -> torch.nn.Module:
    """A model of a family that claims to be of none that is known."""
    module = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**_LLAMA_LIKE)).eval()
    module.config.model_type = "unheard_of"
    return module


@torch.no_grad()
def test_an_unknown_family_that_computes_as_llama_does_is_taken() -> None:
    module = _unknown("starcoder2")
    expected = module(input_ids=IDS).logits
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    assert model.architecture.family == "unheard_of"
    values = read_all(model, ["resid_post.3", "logits"], input_ids=IDS)
    assert torch.equal(values["logits"], expected)
    assert torch.equal(model.readout(values["resid_post.3"]), expected)


def test_an_unknown_family_that_only_looks_like_llama_is_refused() -> None:
    module = _unknown("llama")
    for layer in module.get_submodule("model.layers"):  # type: ignore[attr-defined]
        layer.mlp.register_forward_hook(lambda _, args, output: output * 0.5 + args[0].square())
        layer.register_forward_hook(lambda _, args, output: output * 0.9)
    with pytest.raises(InterpError, match=r"unknown architecture 'unheard_of'.*does not compute as they do.*nearest"):
        StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)

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
from interp.architectures import ARCHITECTURES, RenameConfig, Sublayer
from interp.errors import InterpError
from interp.model.verify import failures, prove
from tests.families.classic import CLASSIC
from tests.interp.reference import CASES, IDS, build, read_all
from tests.tiny import _LLAMA_LIKE, tiny_model, tiny_tokenizer

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


class _Elsewhere(torch.nn.Module):
    """Attention or an MLP that computes from another tensor than the one it is given, as a fused kernel might."""

    def __init__(self, inner: torch.nn.Module, norm: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        norm.register_forward_hook(lambda _, args, output: self.kept.append(output))
        self.kept: list[Tensor] = []

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> object:
        return self.inner(self.kept.pop(), *args, **kwargs)


@pytest.mark.parametrize(("part", "norm", "kind"), [
    ("self_attn", "input_layernorm", "attn_in"), ("mlp", "post_attention_layernorm", "mlp_in"),
])  # fmt: skip
def test_an_edit_that_is_lost_is_found_out(part: str, norm: str, kind: str) -> None:
    """In the middle layer, and in one that is only tried because the middle one is pruned."""
    for lost, pruned in ((2, []), (1, [2])):
        module = build("llama")
        layers = module.get_submodule("model.layers")
        for layer in pruned:
            _prune(module, "llama", [layer])
        layer = layers.get_submodule(str(lost))
        setattr(layer, part, _Elsewhere(layer.get_submodule(part), layer.get_submodule(norm)))
        with pytest.raises(InterpError, match=f"an edit of {kind} changes the logits does not hold at layer {lost}"):
            StandardizedTransformer(module, tokenizer=tiny_tokenizer())


_OUTPUTS = {
    "llama": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"),
    "gemma2": ("model.layers.{}.post_attention_layernorm", "model.layers.{}.post_feedforward_layernorm"),
    "gpt2": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj"),
    "gpt_neox": ("gpt_neox.layers.{}.attention.dense", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
    "mixtral": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.experts"),
}


def _prune(module: torch.nn.Module, case: str, layers: list[int], parts: tuple[int, ...] = (0, 1)) -> None:
    """Zero what attention (0) and the MLP (1) of layers give."""
    with torch.no_grad():
        for layer in layers:
            for part in parts:
                for parameter in module.get_submodule(_OUTPUTS[case][part].format(layer)).parameters():
                    # Gemma's norms multiply by one more than their weight.
                    parameter.fill_(-1.0 if case == "gemma2" else 0.0)


@pytest.mark.parametrize("case", _OUTPUTS)
@torch.no_grad()
def test_pruned_layers_are_no_failure(case: str) -> None:
    """Whichever layer is pruned the verdict is the same, and where all are, it is left open."""
    for pruned in ([1, 2], [0, 2, 3]):
        module = build(case)
        _prune(module, case, pruned)
        model = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
        proofs = prove(model, attention=True)
        assert all(proof.holds for proof in proofs), [proof for proof in proofs if not proof.holds]
        assert torch.equal(read_all(model, ["logits"], input_ids=IDS)["logits"], module(input_ids=IDS).logits)
    module = build(case)
    _prune(module, case, [0, 1, 2, 3])
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
    proofs = prove(model, attention=True)
    assert not [proof for proof in proofs if proof.holds is False]
    undecided = {proof.identity.split()[3]: proof.why for proof in proofs if proof.holds is None}
    inside = {
        "attn_in",
        "mlp_in",
        *(kind for kind in ("q", "k", "v", "scores", "pattern", "z") if model.has(f"{kind}.0")),
    }
    assert undecided.keys() - {"mlp_post"} == inside
    assert undecided["attn_in"].startswith("in every layer attn_out is the same whatever enters the layer")


@torch.no_grad()
def test_zeros_elsewhere_are_no_failure() -> None:
    """Keys of zero (uniform attention), values of zero, and a head of zero."""
    for path, undecided in (("k_proj", {"q", "scores"}), ("v_proj", {"attn_in", "q", "k", "scores", "pattern"})):
        module = build("llama")
        for layer in range(4):
            module.get_submodule(f"model.layers.{layer}.self_attn.{path}").weight.zero_()
        proofs = prove(StandardizedTransformer(module, tokenizer=tiny_tokenizer()), attention=True)
        assert not [proof for proof in proofs if proof.holds is False]
        assert {proof.identity.split()[3] for proof in proofs if proof.holds is None} == undecided
    module = build("llama")
    module.get_submodule("lm_head").weight.zero_()
    proofs = prove(StandardizedTransformer(module, tokenizer=tiny_tokenizer()))
    found = {proof.identity.split()[3]: proof for proof in proofs if proof.holds is not True}
    assert "logits" not in found
    assert found["resid_post"].holds is None
    assert found["resid_post"].why == "the head gives the same logits whatever it receives"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_rows_of_padding_may_give_minus_infinity(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def padded() -> torch.nn.Module:
        module = build("llama")
        head = module.get_submodule("lm_head")
        head.bias = torch.nn.Parameter(torch.zeros(400))
        head.bias[390:] = -torch.inf
        return module.to(dtype)

    module = padded()
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
    values = read_all(model, ["resid_post.3", "logits"], input_ids=IDS)
    assert torch.equal(values["logits"], module(input_ids=IDS).logits)
    assert bool((values["logits"][..., 390:] == -torch.inf).all())
    assert torch.equal(model.readout(values["resid_post.3"]), values["logits"])
    proofs = prove(model, attention=True)
    assert all(proof.holds for proof in proofs)
    # The infinities do not make the proof of the readout blind.
    records = tuple(replace(r, logit_scale="initializer_range") for r in ARCHITECTURES if "llama" in r.model_types)
    monkeypatch.setattr(interp.architectures.find, "ARCHITECTURES", records)
    with pytest.raises(InterpError, match=r"readout\(resid_post\) == logits does not hold"):
        StandardizedTransformer(padded(), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("case", ["opt", "llama", "gpt_neox"])
@torch.no_grad()
def test_a_part_that_is_to_be_ignored_is_not_checked(case: str) -> None:
    """Its sites stay what the record says; what is wrong with it fails no proof; the rest is proved."""
    module = build(case) if case != "opt" else _opt()
    plain = module(input_ids=IDS).logits
    for ignored, parts in ((RenameConfig(ignore_mlp=True), "mlp"), (RenameConfig(ignore_attn=True), "attn")):
        model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), rename_config=ignored)
        values = read_all(model, [f"{parts}_out.1", "resid_post.1", "logits"], input_ids=IDS)
        whole = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
        for site, value in read_all(whole, list(values), input_ids=IDS).items():
            assert torch.equal(value, values[site])
        assert torch.equal(values["logits"], plain)
        identities = [proof.identity for proof in prove(model, attention=True)]
        assert "readout(resid_post) == logits" in identities
        assert not any(f"{parts}_out" in identity for identity in identities)


def test_a_part_that_is_wrong_passes_only_where_it_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    records = tuple(replace(r, mlp=MLP) if "gemma2" in r.model_types else r for r in ARCHITECTURES)
    monkeypatch.setattr(interp.architectures.find, "ARCHITECTURES", records)
    with pytest.raises(InterpError, match=r"resid_post == resid_mid \+ mlp_out"):
        StandardizedTransformer(build("gemma2"), tokenizer=tiny_tokenizer())
    ignored = RenameConfig(ignore_mlp=True)
    StandardizedTransformer(build("gemma2"), tokenizer=tiny_tokenizer(), rename_config=ignored)
    with pytest.raises(InterpError, match=r"readout\(resid_post\) == logits"):
        record = tuple(replace(r, softcap=None) for r in records)
        monkeypatch.setattr(interp.architectures.find, "ARCHITECTURES", record)
        StandardizedTransformer(build("gemma2"), tokenizer=tiny_tokenizer(), rename_config=ignored)


def _opt() -> torch.nn.Module:
    model_type, values = CLASSIC["opt"]
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**values)).eval()


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


def test_edits_that_drown_in_the_roundings_of_the_logits_are_no_failure() -> None:
    """In bfloat16 a head gives steps so coarse that an edit of q in the middle layer shows in what attention adds."""
    model = StandardizedTransformer(tiny_model("gpt_neox").to(torch.bfloat16), tokenizer=tiny_tokenizer())
    assert not failures(prove(model, attention=True))

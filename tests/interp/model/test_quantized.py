"""Models whose projections quantize: all sites but `head_out` where activations are quantized, and its numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn

from interp import StandardizedTransformer
from interp.architectures import RenameConfig
from interp.errors import InterpError
from interp.lenses import logit_lens
from interp.model.digest import model_digest
from interp.model.verify import prove
from tests.apart import torchao_quantization
from tests.interp.reference import IDS
from tests.tiny import tiny_model, tiny_tokenizer

SIZES = dict(hidden_size=64, intermediate_size=128)  # bitsandbytes packs 4-bit weights in blocks of 64


def _dynamic(module: nn.Module) -> nn.Module:
    quantized: nn.Module = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    return quantized


def _torchao(module: nn.Module) -> nn.Module:
    torchao = torchao_quantization()
    torchao.quantize_(module, torchao.Int8DynamicActivationInt8WeightConfig())
    return module


def _torchao_weights(module: nn.Module) -> nn.Module:
    torchao = torchao_quantization()
    torchao.quantize_(module, torchao.Int8WeightOnlyConfig())
    return module


def _bitsandbytes(module: nn.Module, make: Callable[[nn.Linear], nn.Linear]) -> nn.Module:
    """What transformers does at loading, which on a CPU needs no checkpoint either."""
    for path, linear in list(module.named_modules()):
        if isinstance(linear, nn.Linear) and path != "lm_head":
            new = make(linear)
            new.load_state_dict(linear.state_dict())
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, new.to("cpu"))
    return module.eval()  # as it is wrapped: in training bitsandbytes multiplies otherwise


def _llm_int8(module: nn.Module) -> nn.Module:
    import bitsandbytes

    def make(linear: nn.Linear) -> nn.Linear:
        return bitsandbytes.nn.Linear8bitLt(
            linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, threshold=6.0
        )

    return _bitsandbytes(module, make)


def _nf4(module: nn.Module) -> nn.Module:
    import bitsandbytes

    def make(linear: nn.Linear) -> nn.Linear:
        return bitsandbytes.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16
        )

    return _bitsandbytes(module.to(torch.bfloat16), make)


# torch has its quantization move to torchao; until it is gone, models are made with it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]
ACTIVATIONS = {"dynamic": _dynamic, "torchao": _torchao, "llm.int8": _llm_int8}
WEIGHTS = {"torchao weights": _torchao_weights, "nf4": _nf4}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes logs each cast to the half precision in which it multiplies."""
    monkeypatch.setattr(logging.getLogger("bitsandbytes"), "level", logging.ERROR)


def _hooked(module: nn.Module, paths: dict[str, tuple[str, str]]) -> dict[str, torch.Tensor]:
    """What plain hooks see: site -> (path, `input` or `output`)."""
    seen: dict[str, torch.Tensor] = {}
    handles = []
    for site, (path, side) in paths.items():

        def keep(_: nn.Module, args: object, output: object, at: str = site, of: str = side) -> None:
            value: object = args if of == "input" else output
            seen[at] = value[0] if isinstance(value, tuple) else value  # type: ignore[assignment]

        handles.append(module.get_submodule(path).register_forward_hook(keep))
    seen["logits"] = module(input_ids=IDS).logits
    for handle in handles:
        handle.remove()
    return seen


PATHS = {
    "z.2": ("model.layers.2.self_attn.o_proj", "input"),
    "attn_out.2": ("model.layers.2.self_attn.o_proj", "output"),
    "mlp_post.2": ("model.layers.2.mlp.down_proj", "input"),
    "mlp_out.2": ("model.layers.2.mlp.down_proj", "output"),
    "resid_post.2": ("model.layers.2", "output"),
}


@pytest.mark.parametrize("how", [*ACTIVATIONS, *WEIGHTS])
@torch.no_grad()
def test_quantized_projections(how: str) -> None:
    module = {**ACTIVATIONS, **WEIGHTS}[how](tiny_model("llama", **SIZES))
    expected = _hooked(module, PATHS)
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
    found: dict[str, torch.Tensor] = {}
    with model.trace(input_ids=IDS):
        for site in model.in_order([*PATHS, "logits"]):
            found[str(site)] = model.read(site).clone()
    for site, value in expected.items():
        assert torch.equal(found[site].flatten(2), value.flatten(2)), site
    assert model.width("mlp_post.2") == 128
    assert model.readout(expected["resid_post.2"]).shape == (2, 6, 400)
    proofs = {proof.identity: proof for proof in prove(model, attention=True)}
    assert all(proof.holds for proof in proofs.values())
    summed, projected = "sum of head_out + bias == attn_out", "projection of z == attn_out"
    if how in WEIGHTS:
        assert model.has("head_out.2")
        tolerance = dict(rtol=1e-5, atol=1e-5) if model.dtype == torch.float32 else dict(rtol=0.05, atol=0.05)
        assert (proofs[summed].layers, projected in proofs) == (4, False)
        with model.trace(input_ids=IDS):
            found["head_out.2"] = model.read("head_out.2").clone()
        torch.testing.assert_close(found["head_out.2"].sum(2), expected["attn_out.2"], **tolerance)
        return
    assert not model.has("head_out.2")
    assert (proofs[projected].layers, summed in proofs) == (4, False)
    with pytest.raises(
        InterpError, match=r"'head_out.2' does not exist.*not linear, since it quantizes what it receives"
    ):
        model.read("head_out.2")


@torch.no_grad()
def test_a_wrong_projection_of_a_quantized_model_is_found_out() -> None:
    """That it quantizes excuses no name: what the projection makes of z has to be what attention adds."""
    wrong = RenameConfig(attn_projection_name="self_attn.q_proj")
    with pytest.raises(InterpError, match="projection of z == attn_out does not hold at layer 0"):
        StandardizedTransformer(_dynamic(tiny_model("llama", **SIZES)), tokenizer=tiny_tokenizer(), rename_config=wrong)


@pytest.mark.parametrize("how", ACTIVATIONS)
@torch.no_grad()
def test_a_lens_of_a_quantized_model(how: str) -> None:
    module = ACTIVATIONS[how](tiny_model("llama", **SIZES))
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
    texts = ["The quick brown fox", "king king 1135"]
    # torch's has one grid for all tokens of a pass, LLM.int8 chooses columns by them: others for the last token alone,
    # and quite others for prompts in one batch.
    for prompts in [texts] if how == "torchao" else [texts[:1], texts[1:]]:
        lens = logit_lens(model, prompts, targets={"word": [5, 17]})
        for row, text in enumerate(prompts):
            logits = module(**model.tokenizer(text, return_tensors="pt")).logits[0, -1]
            expected = logits.log_softmax(-1)[[5, 17]].logsumexp(-1)
            assert lens.log_prob[row, -1, 0] == pytest.approx(float(expected), abs=1e-5 if how == "torchao" else 0.05)


@pytest.mark.parametrize("how", [*ACTIVATIONS, *WEIGHTS])
@torch.no_grad()
def test_digests_of_quantized_models_are_those_of_their_weights(how: str) -> None:
    """Packed weights are no parameters, and scales may lie beside them; asking changes no number."""

    def quantized(scale: float) -> nn.Module:
        module = tiny_model("llama", **SIZES)
        module.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(scale)
        made = {**ACTIVATIONS, **WEIGHTS}[how](module)
        made(input_ids=IDS)  # bitsandbytes packs weights as it runs
        return made

    digests = [model_digest(quantized(scale)) for scale in (1.0, 1.0, 1.5, -1.0)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    module = quantized(1.0)
    logits = module(input_ids=IDS).logits
    assert model_digest(module) == digests[0]
    assert torch.equal(module(input_ids=IDS).logits, logits)

"""Modules replaced under a wrapped model: what is read, written and computed is that of the modules that run."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.errors import InterpError
from interp.lenses import Latents, logit_lens, patchscope_lens
from tests.apart import torchao_quantization
from tests.interp.reference import IDS
from tests.tiny import tiny_model, tiny_tokenizer

PATHS = {
    family: {"attn_out.1": f"{layers}.1.{attention}", "mlp_out.1": f"{layers}.1.mlp", "resid_post.2": f"{layers}.2"}
    for family, layers, attention in (("llama", "model.layers", "self_attn"), ("gpt2", "transformer.h", "attn"))
}
# peft asks transformers for a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def _lora(family: str) -> peft.LoraConfig:
    if family == "gpt2":
        return peft.LoraConfig(target_modules=["c_proj"], init_lora_weights=False, fan_in_fan_out=True)
    return peft.LoraConfig(target_modules=["o_proj", "down_proj", "q_proj"], init_lora_weights=False)


def _inject(module: Any, family: str) -> None:
    peft.inject_adapter_in_model(_lora(family), module)


def _add_adapter(module: Any, family: str) -> None:
    module.add_adapter(_lora(family))


def _get_peft_model(module: Any, family: str) -> None:
    peft.get_peft_model(module, _lora(family))


def _unload(module: Any, family: str) -> None:
    peft.get_peft_model(module, _lora(family)).merge_and_unload()


def _load_adapter(module: Any, family: str) -> None:
    """An adapter of transformers' own, from a folder as `save_pretrained` writes it."""
    other = peft.get_peft_model(tiny_model(family), _lora(family))
    with tempfile.TemporaryDirectory() as folder:
        other.save_pretrained(folder)
        module.load_adapter(folder)
    found = dict(module.named_parameters())
    for name, value in other.base_model.model.named_parameters():
        assert torch.equal(found[name], value), name


def _layers(module: Any, family: str) -> Any:
    return module.transformer.h if family == "gpt2" else module.model.layers


def _assign(module: Any, family: str) -> None:
    layer = _layers(module, family)[1]
    layer.mlp = nn.Sequential(layer.mlp, nn.Linear(32, 32))  # the old module moves into the new one


def _assign_without_projection(module: Any, family: str) -> None:
    _layers(module, family)[1].mlp = nn.Linear(32, 32)


def _swap(module: Any, family: str) -> None:
    layers = _layers(module, family)
    layers[1], layers[2] = layers[2], layers[1]


def _copy(module: Any, family: str) -> None:
    layers = _layers(module, family)
    layers[1] = copy.deepcopy(layers[2])


def _cut(module: Any, family: str) -> None:
    del _layers(module, family)[3]
    module.config.num_hidden_layers = 3


def _resize(module: Any, family: str) -> None:
    module.resize_token_embeddings(500, mean_resizing=False)


def _quantize(module: Any, family: str) -> None:
    torchao = torchao_quantization()
    torchao.quantize_(module, torchao.Int8DynamicActivationInt8WeightConfig())


CHANGES: dict[str, Callable[[Any, str], None]] = {
    "inject_adapter_in_model": _inject,
    "add_adapter": _add_adapter,
    "load_adapter": _load_adapter,
    "get_peft_model": _get_peft_model,
    "merge_and_unload": _unload,
    "assign": _assign,
    "assign without projection": _assign_without_projection,
    "swap": _swap,
    "copy": _copy,
    "cut": _cut,
    "resize_token_embeddings": _resize,
    "quantize_": _quantize,
}


def _hooked(module: nn.Module, paths: dict[str, str]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    handles = []
    for site, path in paths.items():

        def keep(_: nn.Module, args: object, output: Any, at: str = site) -> None:
            seen[at] = (output if isinstance(output, Tensor) else output[0]).clone()

        handles.append(module.get_submodule(path).register_forward_hook(keep))
    seen["logits"] = module(input_ids=IDS).logits
    for handle in handles:
        handle.remove()
    return seen


def _agrees(model: StandardizedTransformer, paths: dict[str, str]) -> None:
    """Reading, writing, the readout and a lens give what hooks on the modules that run give."""
    module = model._module
    expected = _hooked(module, paths)
    found: dict[str, Tensor] = {}
    with model.trace(input_ids=IDS):
        for site in model.in_order([*paths, "logits"]):
            found[str(site)] = model.read(site).clone()
    for site, value in expected.items():
        assert torch.equal(found[site], value), site
    with model.trace(input_ids=IDS):
        model.write("mlp_out.1", torch.zeros_like(model.read("mlp_out.1")))
        found["written"] = model.logits.clone()
    handle = module.get_submodule(paths["mlp_out.1"]).register_forward_hook(lambda _, args, output: output * 0)
    assert torch.equal(found["written"], module(input_ids=IDS).logits)
    handle.remove()
    assert model.vocab_size == expected["logits"].shape[-1]
    lens = logit_lens(model, Latents(expected["resid_post.2"][None, :, -1], [2]), targets=[[[5, 17]]] * 2)
    logits = model.readout(expected["resid_post.2"][:, -1])
    torch.testing.assert_close(
        torch.tensor(lens.log_prob[:, 0, 0]), logits.log_softmax(-1)[:, [5, 17]].logsumexp(-1), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("family", "change"),
    [
        *(("llama", change) for change in CHANGES),
        ("gpt2", "inject_adapter_in_model"),
        ("gpt2", "load_adapter"),
        ("gpt2", "assign"),
    ],
)
@torch.no_grad()
def test_replaced_modules_are_followed(family: str, change: str) -> None:
    torch.manual_seed(0)
    model = StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer())
    held = model.layers[2]
    with model.trace(input_ids=IDS):  # so that everything that is kept is kept
        model.read("mlp_out.1")
    CHANGES[change](model._module, family)
    model._module.eval()
    _agrees(model, PATHS[family])
    assert held._module is _layers(model._module, family)[2]
    assert model.num_layers == (3 if change == "cut" else 4)
    assert model.has("head_out.1") == (change != "quantize_")
    assert model.has("mlp_post.1") == ("assign" not in change)


def test_what_cannot_be_followed_is_refused_at_every_pass_until_it_is_mended(caplog: pytest.LogCaptureFixture) -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    layers: Any = model._module.model.layers
    first, second = layers[1], layers[2]
    layers[2] = first  # one module is two layers: what one of them reads is not its own
    for _ in range(2):
        with pytest.raises(
            InterpError, match=r"were changed since it was wrapped.*Every layer needs a module of its own"
        ):
            model.trace(input_ids=IDS)
        with pytest.raises(InterpError, match="were changed since"):
            logit_lens(model, Latents(torch.zeros(1, 2, 32), [0]), [[[5]]] * 2)
    layers[2] = second
    caplog.clear()
    with caplog.at_level(logging.INFO, "interp.model.following"), torch.no_grad():
        _agrees(model, PATHS["llama"])
    assert caplog.messages == [
        "LlamaForCausalLM: modules were replaced since it was wrapped; its names are proved again."
    ]


@torch.no_grad()
def test_an_edit_that_stays_goes_through_a_module_that_was_added() -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    model.layers[3].adapter = nn.Linear(32, 32)
    with model.edit(inplace=True):
        hidden = model.layers[3].output
        model.layers[3].output = hidden + model.layers[3].adapter(hidden)
    found: dict[str, Tensor] = {}
    with model.trace(input_ids=IDS):
        found["logits"] = model.logits.clone()
    layer: Any = model._module.model.layers[3]
    handle = layer.register_forward_hook(lambda _, args, output: output + layer.adapter(output))
    torch.testing.assert_close(found["logits"], model._module(input_ids=IDS).logits)
    handle.remove()


def test_a_module_under_a_standard_name_of_another_is_refused() -> None:
    model = StandardizedTransformer(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    model.layers[1].self_attn = nn.Linear(32, 32)  # GPT-2's own name is attn: this one would never run
    with pytest.raises(InterpError, match=r"has a standard name of another.*the model's own name"):
        model.trace(input_ids=IDS)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, as it gets ready to compile
def test_compiled_parts_are_refused() -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    layer: Any = model._module.model.layers[1]
    layer.compile()
    with pytest.raises(InterpError, match=r"'model.layers.1' is compiled by torch.compile"):
        model.trace(input_ids=IDS)
    layer._compiled_call_impl = None
    with torch.no_grad():
        _agrees(model, PATHS["llama"])


@torch.no_grad()
def test_what_was_found_out_of_the_modules_before_is_forgotten() -> None:
    """A patchscope through fast ways that were tried on the model before its layers mixed tokens."""

    class Mixing(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: Tensor) -> Tensor:
            return self.inner(hidden) + hidden.mean(1, keepdim=True)  # sees what comes later

    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    latents = torch.randn(4, 2, 32, generator=torch.Generator().manual_seed(0))
    prompts: Any = ([[1, 17, 250, 33, 94], [1, 88, 5]], [[2], [1]], [[[5, 17]]] * 2)
    patchscope_lens(model, Latents(latents), *prompts)
    layer: Any = model._module.model.layers[2]
    layer.mlp = Mixing(layer.mlp)
    found = patchscope_lens(model, Latents(latents), *prompts)
    fresh = StandardizedTransformer(copy.deepcopy(model._module), tokenizer=tiny_tokenizer())
    expected = patchscope_lens(fresh, Latents(latents), *prompts)
    assert found.log_prob == pytest.approx(expected.log_prob, abs=1e-5)

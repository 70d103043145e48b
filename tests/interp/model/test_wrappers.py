"""Models that come in a wrapper: peft's, torch.compile's, data parallel; taken off, or refused with the reason."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

from interp import StandardizedTransformer
from interp.errors import InterpError
from tests.interp.reference import IDS
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = [
    # peft asks transformers for a name that is on its way out.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # torch's own, as it gets ready to compile
]
ADAPTERS: dict[str, Any] = {
    "lora": peft.LoraConfig(target_modules=["o_proj", "down_proj"], init_lora_weights=False, lora_dropout=0.5),
    "lora for causal": peft.LoraConfig(target_modules=["o_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
}


@pytest.mark.parametrize("kind", [*ADAPTERS, "compiled", "data parallel", "data parallel lora"])
@torch.no_grad()
def test_a_wrapper_is_taken_off(kind: str) -> None:
    torch.manual_seed(0)
    module: Any = tiny_model("llama")
    if kind.removeprefix("data parallel ") in ADAPTERS:
        module = peft.get_peft_model(module, ADAPTERS[kind.removeprefix("data parallel ")])
    plain = module
    if kind == "compiled":
        module = torch.compile(module)
    if kind.startswith("data parallel"):
        module = nn.DataParallel(module)
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
    seen: dict[str, torch.Tensor] = {}
    layer = next(part for path, part in plain.named_modules() if path.endswith("model.layers.1"))
    handle = layer.register_forward_hook(lambda _, args, output: seen.update(hidden=output))
    expected = plain(input_ids=IDS).logits
    handle.remove()
    found: dict[str, torch.Tensor] = {}
    with model.trace(input_ids=IDS):
        found["hidden"] = model.read("resid_post.1").clone()
        found["logits"] = model.logits.clone()
    assert torch.equal(found["logits"], expected)
    assert torch.equal(found["hidden"], seen["hidden"])
    if kind in ADAPTERS:  # they are active
        with plain.disable_adapter():
            assert not torch.allclose(plain(input_ids=IDS).logits, expected)


def _prompt_tuned() -> nn.Module:
    return peft.get_peft_model(
        tiny_model("llama"), peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    )


def _prefix_tuned() -> nn.Module:
    return peft.get_peft_model(
        tiny_model("llama"), peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    )


def _compiled_in_place() -> nn.Module:
    module = tiny_model("llama")
    module.compile()
    return module


def _with_a_compiled_layer() -> nn.Module:
    module: Any = tiny_model("llama")
    module.model.layers[1] = torch.compile(module.model.layers[1])
    return module


class FullyShardedDataParallel(nn.Module):
    """Called as torch's is, which needs a process group to be made."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_prompt_tuned, "adapters PROMPT_TUNING change what LlamaForCausalLM is given or gives.*get_base_model"),
        (_prefix_tuned, "adapters PREFIX_TUNING change what LlamaForCausalLM is given or gives"),
        (_compiled_in_place, "'LlamaForCausalLM' is compiled by torch.compile"),
        (_with_a_compiled_layer, "'model.layers.1' is compiled by torch.compile"),
        (lambda: FullyShardedDataParallel(tiny_model("llama")), "holds its model's weights in parts"),
        (
            lambda: nn.Sequential(tiny_model("llama")),
            "expected a transformers model, which has a config, got Sequential",
        ),
    ],
)
def test_a_wrapper_that_does_more_is_refused(make: Any, message: str) -> None:
    module = make()
    training = [part.training for part in module.modules()]
    with pytest.raises(InterpError, match=message):
        StandardizedTransformer(module, tokenizer=tiny_tokenizer())
    assert [part.training for part in module.modules()] == training

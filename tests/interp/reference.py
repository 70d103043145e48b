"""Plain transformers with torch hooks: the slow, independent twin of reading and writing sites.

Where things are is written here by hand, from transformers' source, and not taken from `interp.architectures`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma3Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from interp import StandardizedTransformer
from tests.tiny import _LLAMA_LIKE, FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.tensor([[1, 17, 250, 33, 94, 301], [1, 88, 5, 260, 71, 12]])

# name of the case -> model type, changes to the config
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, dict(values)) for family, values in FAMILIES.items()},
    "gpt_neox_sequential": ("gpt_neox", dict(FAMILIES["gpt_neox"], use_parallel_residual=False)),
    "mixtral": ("mixtral", dict(_LLAMA_LIKE, num_local_experts=4, num_experts_per_tok=2)),
    "qwen3_moe": (
        "qwen3_moe",
        dict(_LLAMA_LIKE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    ),
    "gemma": ("gemma", dict(_LLAMA_LIKE, head_dim=8)),
    "phi3": ("phi3", dict(_LLAMA_LIKE)),
    "olmo2": ("olmo2", dict(_LLAMA_LIKE)),
    "cohere": ("cohere", dict(_LLAMA_LIKE, logit_scale=0.25)),
    "gemma3": ("gemma3", {}),
}
PARALLEL = {"gpt_neox", "cohere"}


def build(case: str) -> nn.Module:
    """A fresh tiny model of a case, the same at every call."""
    model_type, values = CASES[case]
    if case in FAMILIES:
        return tiny_model(case)
    if case == "gemma3":  # with a vision tower, which text leaves alone
        vision = dict(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28,
            patch_size=14,
        )  # fmt: skip
        config = Gemma3Config(
            text_config=dict(FAMILIES["gemma3_text"]), vision_config=vision, mm_tokens_per_image=4,
            image_token_index=399, boi_token_index=397, eoi_token_index=398,
        )  # fmt: skip
    else:
        config = CONFIG_MAPPING[model_type](**values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.15)
    return model.eval()


@cache
def wrapped(case: str) -> StandardizedTransformer:
    """The model of a case with standard names, made once."""
    return StandardizedTransformer(build(case), tokenizer=tiny_tokenizer())


@torch.no_grad()
def read_all(model: StandardizedTransformer, sites: list[str], **inputs: Tensor) -> dict[str, Tensor]:
    """Clones of the values at sites, from one trace."""
    values = {}
    with model.trace(**inputs):
        for site in sites:
            values[site] = model.read(site).clone()
    return values


@dataclass(frozen=True)
class Places:
    """Module paths: `layer` has {i}; the others count from a layer, `norm` and `head` from the model."""

    layer: str
    norm: str
    attention: str
    attention_added: str
    middle: str
    mlp: str
    mlp_added: str
    head: str = "lm_head"


_LLAMA = Places(
    "model.layers.{i}", "model.norm", "self_attn", "self_attn", "post_attention_layernorm", "mlp", "mlp"
)  # fmt: skip
_GEMMA2 = Places(
    "model.layers.{i}", "model.norm", "self_attn", "post_attention_layernorm", "pre_feedforward_layernorm", "mlp",
    "post_feedforward_layernorm",
)  # fmt: skip
PLACES: dict[str, Places] = {
    **dict.fromkeys(["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "phi3"], _LLAMA),
    **dict.fromkeys(["gemma2", "gemma3_text"], _GEMMA2),
    "gemma3": Places(
        "model.language_model.layers.{i}", "model.language_model.norm", "self_attn", "post_attention_layernorm",
        "pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm",
    ),
    "olmo2": Places(
        "model.layers.{i}", "model.norm", "self_attn", "post_attention_layernorm", "mlp", "mlp",
        "post_feedforward_layernorm",
    ),
    "cohere": Places("model.layers.{i}", "model.norm", "self_attn", "self_attn", "mlp", "mlp", "mlp"),
    "gpt2": Places("transformer.h.{i}", "transformer.ln_f", "attn", "attn", "ln_2", "mlp", "mlp"),
    **dict.fromkeys(
        ["gpt_neox", "gpt_neox_sequential"],
        Places(
            "gpt_neox.layers.{i}", "gpt_neox.final_layer_norm", "attention", "attention", "post_attention_layernorm",
            "mlp", "mlp",
        ),
    ),
}  # fmt: skip


@cache
def plain(case: str) -> nn.Module:
    """The model of a case that nothing ever wraps."""
    return build(case)


def place(case: str, site: str) -> tuple[nn.Module, str]:
    """The module whose input or output is a site."""
    model, places = plain(case), PLACES[case]
    kind, _, number = site.partition(".")
    if kind == "logits":
        return model, "output"
    if kind == "final_norm":
        return model.get_submodule(places.norm), "output"
    layer = model.get_submodule(places.layer.format(i=number or 0))
    if kind in ("embed", "resid_pre"):
        return layer, "input"
    if kind == "resid_post":
        return layer, "output"
    path, side = {
        "attn_in": (places.attention, "input"),
        "attn_out": (places.attention_added, "output"),
        "resid_mid": (places.middle, "input"),
        "mlp_in": (places.mlp, "input"),
        "mlp_out": (places.mlp_added, "output"),
    }[kind]
    return layer.get_submodule(path), side


def _first(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return value.logits if hasattr(value, "logits") else value[0]


@contextmanager
def reading(case: str, sites: list[str]) -> Iterator[dict[str, Tensor]]:
    """Hooks that fill the given dict with clones while they stand."""
    values: dict[str, Tensor] = {}
    hooks = []
    for site in sites:
        module, side = place(case, site)
        if side == "input":

            def before(_: nn.Module, args: Any, kwargs: Any, site: str = site) -> None:
                values[site] = (args[0] if args else kwargs["hidden_states"]).detach().clone()

            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:

            def after(_: nn.Module, args: Any, output: Any, site: str = site) -> None:
                values[site] = _first(output).detach().clone()

            hooks.append(module.register_forward_hook(after))
    try:
        yield values
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def writing(case: str, site: str, value: Tensor) -> Iterator[None]:
    """A hook that puts `value` at a site while it stands.

    `resid_mid` is no module's output. It is set here through what attention adds: `value - resid_pre`.
    """
    kind, _, number = site.partition(".")
    hooks = []
    if kind == "resid_mid":
        stream: list[Tensor] = []
        layer, _ = place(case, f"resid_pre.{number}")
        hooks.append(
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: stream.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        )
        added, _ = place(case, f"attn_out.{number}")
        hooks.append(added.register_forward_hook(lambda _, args, output: _with(output, value - stream[-1])))
    else:
        module, side = place(case, site)
        if side == "input":

            def before(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
                return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})

            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            hooks.append(module.register_forward_hook(lambda _, args, output: _with(output, value)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _with(output: Any, value: Tensor) -> Any:
    if isinstance(output, Tensor):
        return value
    if hasattr(output, "logits"):
        output.logits = value
        return output
    return (value, *output[1:])

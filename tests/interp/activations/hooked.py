"""What a plain transformers forward pass holds at each site, by torch hooks, one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from interp.model import StandardizedTransformer
from interp.sites import Site
from tests.tiny import NUM_LAYERS, VOCABULARY_SIZE, tiny_model, tiny_tokenizer

LENGTHS = [5, 9, 3, 12, 7, 5, 1]

# Where plain PyTorch finds each site: the module's path in the model (with the layer's number) and its side.
_LLAMA = {
    "embed": ("model.layers.0", "input"),
    "resid_pre": ("model.layers.{}", "input"),
    "attn_in": ("model.layers.{}.input_layernorm", "output"),
    "attn_out": ("model.layers.{}.self_attn", "output"),
    "resid_mid": ("model.layers.{}.post_attention_layernorm", "input"),
    "mlp_in": ("model.layers.{}.mlp", "input"),
    "mlp_post": ("model.layers.{}.mlp.down_proj", "input"),
    "mlp_out": ("model.layers.{}.mlp", "output"),
    "resid_post": ("model.layers.{}", "output"),
    "final_norm": ("model.norm", "output"),
    "logits": ("lm_head", "output"),
}
PLACES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "gemma2": {  # norms stand behind attention and MLP too, and the logits are capped after the head
        **_LLAMA,
        "attn_out": ("model.layers.{}.post_attention_layernorm", "output"),
        "resid_mid": ("model.layers.{}.pre_feedforward_layernorm", "input"),
        "mlp_out": ("model.layers.{}.post_feedforward_layernorm", "output"),
        "logits": ("", "logits"),
    },
    "gpt2": {
        "embed": ("transformer.h.0", "input"),
        "resid_pre": ("transformer.h.{}", "input"),
        "attn_in": ("transformer.h.{}.ln_1", "output"),
        "attn_out": ("transformer.h.{}.attn", "output"),
        "resid_mid": ("transformer.h.{}.ln_2", "input"),
        "mlp_in": ("transformer.h.{}.ln_2", "output"),
        "mlp_post": ("transformer.h.{}.mlp.c_proj", "input"),
        "mlp_out": ("transformer.h.{}.mlp", "output"),
        "resid_post": ("transformer.h.{}", "output"),
        "final_norm": ("transformer.ln_f", "output"),
        "logits": ("lm_head", "output"),
    },
    "gpt_neox": {  # attention and MLP in parallel: no resid_mid
        "embed": ("gpt_neox.layers.0", "input"),
        "resid_pre": ("gpt_neox.layers.{}", "input"),
        "attn_in": ("gpt_neox.layers.{}.input_layernorm", "output"),
        "attn_out": ("gpt_neox.layers.{}.attention", "output"),
        "mlp_in": ("gpt_neox.layers.{}.post_attention_layernorm", "output"),
        "mlp_post": ("gpt_neox.layers.{}.mlp.dense_4h_to_h", "input"),
        "mlp_out": ("gpt_neox.layers.{}.mlp", "output"),
        "resid_post": ("gpt_neox.layers.{}", "output"),
        "final_norm": ("gpt_neox.final_layer_norm", "output"),
        "logits": ("lm_head", "output"),
    },
}


@cache
def standardized(family: str) -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer())


def prompts(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY_SIZE, (n,), generator=generator).tolist() for n in lengths]


def sites_of(family: str) -> list[Site]:
    return [
        Site(kind, layer)
        for kind, (path, _) in PLACES[family].items()
        for layer in (range(NUM_LAYERS) if "{}" in path else [None])
    ]


def plain_values(family: str, input_ids: list[int], sites: list[Site]) -> dict[Site, torch.Tensor]:
    """(position, hidden) of each site: one prompt, no padding, torch hooks on a model that nnsight has not touched."""
    model = _untouched(family)
    seen: dict[Site, torch.Tensor] = {}

    def first(value: Any) -> torch.Tensor:
        return value if isinstance(value, torch.Tensor) else value[0]

    def hook(site: Site, side: str) -> Callable[..., None]:
        def keep(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if side == "logits":
                seen[site] = output.logits[0].clone()
            elif side == "output":
                seen[site] = first(output)[0].clone()
            else:
                seen[site] = (args[0] if args else kwargs["hidden_states"])[0].clone()

        return keep

    handles = []
    for site in sites:
        path, side = PLACES[family][site.kind]
        module = model.get_submodule(path.format(site.layer))
        handles.append(module.register_forward_hook(hook(site, side), with_kwargs=True))
    with torch.no_grad():
        model(input_ids=torch.tensor([input_ids]))
    for handle in handles:
        handle.remove()
    return seen


@cache
def _untouched(family: str) -> torch.nn.Module:
    return tiny_model(family)

"""Every site of a plain transformers model, by torch hooks and an attention function that writes down what it sees."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.interp.reference import PLACES, plain, reading

FAMILIES = ["llama", "mistral", "qwen3", "gemma2", "gpt2", "gpt_neox", "mixtral", "olmo2", "cohere", "phi3"]
PROJECTIONS = {  # of attention and of the MLP, from the layer
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
}
LLAMA_LIKE = ("self_attn.o_proj", "mlp.down_proj")


@torch.no_grad()
def plain_sites(case: str, sites: list[str], ids: Tensor) -> dict[str, Tensor]:
    """What a model that nothing wraps computes at sites, and its logits.

    Arguments:
        case: of `tests.interp.reference`.
        sites: whole sites, `head_out` apart.
        ids: (row, position).
    """
    model = plain(case)
    layers = model.config.num_hidden_layers
    inside = {f"{kind}.{layer}" for layer in range(layers) for kind in ("q", "k", "v", "scores", "pattern")}
    projected = {f"{kind}.{layer}" for layer in range(layers) for kind in ("z", "mlp_post")}
    hooked = [site for site in sites if site not in inside | projected]
    with reading(case, [*hooked, "logits"]) as values, _projected(case, values), _attention(case, values):
        model(input_ids=ids, use_cache=False)
    return {site: values[site] for site in [*sites, "logits"]}


@contextmanager
def _projected(case: str, values: dict[str, Tensor]) -> Iterator[None]:
    model = plain(case)
    attention, mlp = PROJECTIONS.get(case, LLAMA_LIKE)
    hooks = []
    for layer in range(model.config.num_hidden_layers):
        module = model.get_submodule(PLACES[case].layer.format(i=layer))
        for kind, path in (("z", attention), ("mlp_post", mlp)):
            if kind == "mlp_post" and case == "mixtral":
                continue
            name = f"{kind}.{layer}"

            def keep(_: nn.Module, args: Any, name: str = name) -> None:
                value = args[0].detach().clone()
                heads = model.config.num_attention_heads
                values[name] = value.unflatten(-1, (heads, -1)) if name.startswith("z") else value

            hooks.append(module.get_submodule(path).register_forward_pre_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _attention(case: str, values: dict[str, Tensor]) -> Iterator[None]:
    """The family's eager attention, written out."""
    model = plain(case)
    layer = model.get_submodule(PLACES[case].layer.format(i=0))
    source = sys.modules[type(layer.get_submodule(PLACES[case].attention)).__module__]

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
    ) -> tuple[Tensor, Tensor]:
        scaling = given.get("scaling") or query.shape[-1] ** -0.5
        groups = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * scaling
        if given.get("softcap") is not None:
            scores = given["softcap"] * torch.tanh(scores / given["softcap"])
        scores = scores if attention_mask is None else scores + attention_mask
        pattern = scores.softmax(-1)
        for name, seen in (("q", query), ("k", key), ("v", value), ("scores", scores), ("pattern", pattern)):
            values[f"{name}.{module.layer_idx}"] = seen.detach().clone()
        return (pattern @ value.repeat_interleave(groups, dim=1)).transpose(1, 2).contiguous(), pattern

    original, before = source.eager_attention_forward, model.config._attn_implementation
    source.eager_attention_forward = attend
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        source.eager_attention_forward = original
        model.set_attn_implementation(before)

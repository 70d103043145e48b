"""What an extraction takes, computed by hand from plain transformers with eager attention: one prompt at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tests.interp.reference import PLACES, build

EPS = 1e-12


@cache
def _eager(case: str) -> nn.Module:
    model: Any = build(case)
    model.set_attn_implementation("eager")
    return model


@contextmanager
def _inputs(modules: dict[str, nn.Module], found: dict[str, Tensor], *, outputs: bool = False) -> Iterator[None]:
    def of(name: str) -> Any:
        def hook(module: nn.Module, given: Any, *gave: Any) -> None:
            value = gave[0] if outputs else given[0]
            found[name] = (value[0] if isinstance(value, tuple) else value).detach().clone()

        return hook

    hooks = [
        module.register_forward_hook(of(name)) if outputs else module.register_forward_pre_hook(of(name))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def by_hand(case: str, ids: list[int]) -> dict[str, Tensor]:
    """`resid_post.L`, `pattern.L`, `v.L` (of each query head), `projected.L`, `attn_out.L`, `last_norm`, `logits`.

    Arguments:
        case: of `tests.interp.reference`.
        ids: one prompt.
    """
    model: Any = _eager(case)
    config, places = model.config, PLACES[case]
    layers = range(config.num_hidden_layers)
    blocks = [model.get_submodule(places.layer.format(i=layer)) for layer in layers]
    attention = [block.get_submodule(places.attention) for block in blocks]
    given: dict[str, Tensor] = {}
    gave: dict[str, Tensor] = {}
    values = {f"v.{layer}": one.c_attn if case == "gpt2" else one.v_proj for layer, one in enumerate(attention)}
    added = {f"attn_out.{layer}": block.get_submodule(places.attention_added) for layer, block in enumerate(blocks)}
    streams = {f"resid_post.{layer}": block for layer, block in enumerate(blocks)}
    with (
        _inputs({"last_norm": model.get_submodule(places.norm)}, given),
        _inputs({**values, **added, **streams}, gave, outputs=True),
    ):
        output = model(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False)
    found = {name: value[0] for name, value in {**given, **gave}.items()} | {"logits": output.logits[0]}
    for layer in layers:
        pattern = output.attentions[layer][0]
        heads = pattern.shape[0]
        value = found[f"v.{layer}"]
        if case == "gpt2":
            value = value.chunk(3, -1)[2]
            weight = attention[layer].c_proj.weight
        else:
            weight = attention[layer].o_proj.weight.T
        width = weight.shape[0] // heads
        kv_heads = value.unflatten(-1, (-1, width)).transpose(0, 1)
        each = torch.stack([kv_heads[head * len(kv_heads) // heads] for head in range(heads)])
        found |= {f"pattern.{layer}": pattern, f"v.{layer}": each}
        found[f"projected.{layer}"] = torch.stack([each[h] @ weight[h * width : (h + 1) * width] for h in range(heads)])
    return found


def visible(length: int, window: int | None) -> Tensor:
    """(query, key), 1.0 where a causal model with a window sees a key."""
    at = torch.arange(length)
    behind = at[:, None] - at
    return ((behind >= 0) & (behind < (window or length))).float()

"""What attention modules are."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from interp.architectures import Sublayer, submodule
from interp.model.spec.linear import linear_maps, widths
from interp.model.spec.norms import is_norm
from interp.model.spec.values import value_of

__all__ = ["read_attention"]

_KEYS = ("k_proj", "key", "Wk")
_FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")
_INPUTS = (*_KEYS, *_FUSED, "q_proj", "v_proj", "query", "value", "Wq", "Wv", "kv_proj", "q_a_proj",
           "kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj")  # fmt: skip
_SCALES = ("scaling", "softmax_scale", "inv_norm_factor")
_QK_NORM = re.compile(r"(q|k|qk|query|key)_?(layer_?)?norm")


def read_attention(
    layers: Sequence[tuple[nn.Module, Sublayer] | None], config: Any, facts: dict[str, Any]
) -> dict[str, Any]:
    """The fields of a `ModelSpec` about attention.

    Arguments:
        layers: each layer's attention and what the record says of it; None in a layer without.
        config: the text model's.
        facts: what the config says, by field.
    """
    there = [pair for pair in layers if pair is not None]
    if not there:
        return {}
    sizes = [None if pair is None else _sizes(*pair, facts) for pair in layers]
    found: dict[str, Any] = {"value_head_dim": _most([size[3] for size in sizes if size is not None])}
    for place, name in enumerate(("num_heads", "num_kv_heads", "head_dim")):
        by_layer = tuple(None if size is None else size[place] for size in sizes)
        of_attention = [value for value, pair in zip(by_layer, layers, strict=True) if pair is not None]
        found[name] = _most(of_attention)
        if len(set(of_attention) - {None}) > 1:
            found[f"{name}_by_layer"] = by_layer
    first, sublayer = there[0]
    found["attention_bias"] = any(
        getattr(inner, "bias", None) is not None for name, inner in linear_maps(first) if name in _INPUTS
    )
    projection = _projection(first, sublayer)
    if projection is not None:
        found["attention_output_bias"] = getattr(projection, "bias", None) is not None
    found["attention_sinks"] = any(
        name.rpartition(".")[2] == "sinks" for module, _ in there for name, _ in module.named_parameters()
    )
    normed = [module for module, _ in there if _has_qk_norm(module)]
    found["qk_norm"] = bool(normed)
    inner = _with_forward(first)
    scale = _scale(inner, found["head_dim"], config)
    if scale is not None:
        found["attention_scale"] = scale
    if facts["positional_embedding"] == "rotary":
        found["rotary_adjacent_pairs"] = _adjacent_pairs(inner, config)
        if normed:
            found["qk_norm_after_rotary"] = _normed_after(_with_forward(normed[0]))
    return found


def _most(values: list[Any]) -> Any:
    return max(values, key=values.count)


def _projection(module: nn.Module, sublayer: Sublayer) -> nn.Module | None:
    if sublayer.projection is None or not sublayer.projection.startswith(f"{sublayer.module}."):
        return None
    return submodule(module, sublayer.projection.removeprefix(f"{sublayer.module}."))


def _with_forward(module: nn.Module) -> nn.Module:
    """The module that computes attention: the one inside, in GPT-Neo."""
    children = [child for child in module.children() if "Attention" in type(child).__name__]
    return children[0] if len(children) == 1 else module


def _sizes(module: nn.Module, sublayer: Sublayer, facts: dict[str, Any]) -> tuple[int | None, ...]:
    """Query heads, key-value heads, width of a query, width of a value."""
    inner = _with_forward(module)
    head_dim = next(
        (value for name in ("qk_head_dim", "head_dim", "head_size") if (value := getattr(inner, name, None))),
        facts["head_dim"],
    )
    value_dim = getattr(inner, "v_head_dim", None) or head_dim
    heads, kv_heads = facts["num_heads"], facts["num_kv_heads"]
    projection = _projection(module, sublayer)
    taken = None if projection is None else widths(projection)
    if taken is not None and value_dim and taken[0] % value_dim == 0:
        heads = taken[0] // value_dim
    for name, linear in linear_maps(module):
        given = widths(linear)
        if given is None or not head_dim or given[1] % head_dim:
            continue
        if name in _KEYS:
            kv_heads = given[1] // head_dim
        elif name in _FUSED and heads is not None:
            kv_heads = (given[1] // head_dim - heads) // 2
    if getattr(inner, "qk_head_dim", None):  # latent attention makes keys and values for every head
        kv_heads = heads
    return heads, kv_heads, head_dim, value_dim


def _has_qk_norm(module: nn.Module) -> bool:
    return any(is_norm(child) and _QK_NORM.fullmatch(name) for name, child in module.named_children())


def _scale(module: nn.Module, head_dim: int | None, config: Any) -> float | None:
    for name in _SCALES:
        if isinstance(value := getattr(module, name, None), float):
            return value
    if isinstance(divisor := getattr(module, "scale_attn", None), float):  # GPT-J, CodeGen
        return 1 / divisor
    if getattr(module, "scale", None) is True and head_dim:  # the first GPT
        return head_dim**-0.5
    return 1.0 if config.model_type == "gpt_neo" else None


def _names(function: Any) -> tuple[str, ...]:
    """The names that a function's code uses, in the order of their first use."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return () if code is None else code.co_names


def _adjacent_pairs(module: nn.Module, config: Any) -> bool | None:
    """Which dimensions the rotation that attention calls pairs; None where its code does not show it."""
    if value_of(config, "rope_interleave") is not None:
        return bool(config.rope_interleave)
    forward = inspect.unwrap(type(module).forward)
    for name in _names(forward):
        rotation = getattr(forward, "__globals__", {}).get(name)
        if "rotary" not in name or not callable(rotation):
            continue
        if "interleave" in name:
            return True
        rotation = inspect.unwrap(rotation)
        used = set(_names(rotation))
        for helper in [name for name in used if "rotary" in name]:  # gpt-oss turns halves in a function of its own
            used |= set(_names(rotation.__globals__.get(helper)))
        if used & {"view_as_complex", "rotate_every_two"}:
            return True
        if "rotate_half" in used:
            turned = rotation.__globals__["rotate_half"](
                torch.arange(1.0, 5.0, dtype=torch.float32, device="cpu")
            ).abs()
            return {(2.0, 1.0, 4.0, 3.0): True, (3.0, 4.0, 1.0, 2.0): False}.get(tuple(turned.tolist()))
        return False if "chunk" in used else None
    return None


def _normed_after(module: nn.Module) -> bool | None:
    """Whether attention norms queries after it has rotated them; None where its code does not show it."""
    names = _names(type(module).forward)
    rotation = [place for place, name in enumerate(names) if "rotary" in name]
    norms = [place for place, name in enumerate(names) if _QK_NORM.fullmatch(name)]
    return min(norms) > min(rotation) if rotation and norms else None

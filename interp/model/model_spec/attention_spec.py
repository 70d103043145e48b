"""Attention modules, positions and norms of a model: by its config, or measured where names do not say."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interp.architectures import Sublayer, submodule
from interp.model.model_spec.lookups import linear_maps, value_of, widths

__all__ = ["is_norm", "read_attention", "read_norm", "read_positions"]


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


# Families that rotate queries and keys only in layers with a sliding window.
_ROTATE_IN_WINDOWS_ONLY = ("afmoe", "cohere2", "cohere2_moe", "exaone4", "exaone_moe", "flint", "kolibri1")


def read_positions(config: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `ModelSpec` about positions.

    Arguments:
        config: the text model's.
        facts: what is known already: sizes and kinds of attention.
    """
    rope = value_of(config, "rope_parameters")
    if value_of(config, "alibi"):
        return {"positional_embedding": "alibi"}
    if rope and (_says_no(config, "position_embedding_type", "rope") or _says_no(config, "use_mem_rope", True)):
        return {"positional_embedding": "none"}
    if rope:
        return {"positional_embedding": "rotary", **_rotation(config, rope, facts)}
    if value_of(config, "rotary_dim") is not None:  # GPT-J and CodeGen, whose base stands in their code
        return {"positional_embedding": "rotary", "rotary_dim": config.rotary_dim, "rotary_base": 10000.0}
    return {"positional_embedding": None}


def _says_no(config: Any, name: str, yes: object) -> bool:
    return hasattr(config, name) and getattr(config, name) != yes


def _rotation(config: Any, rope: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    reaches, num_layers = facts["attention_types"], facts["num_layers"]
    flat = rope if "rope_theta" in rope else None
    if reaches is None:  # nothing is known about the layers
        return {} if flat is None else _entry(config, flat, flat["rope_theta"], facts["head_dim"])
    kinds = value_of(config, "layer_types")
    entries = [flat if flat is not None or kinds is None else rope.get(kinds[layer]) for layer in range(num_layers)]
    bases = tuple(
        _base(config, layer, entries[layer]) if reach is not None and _rotates(config, layer, reach) else None
        for layer, reach in enumerate(reaches)
    )
    rotating = [layer for layer in range(num_layers) if bases[layer] is not None]
    if not rotating:
        return {}
    main = next((layer for layer in rotating if reaches[layer] == "full"), rotating[0])
    head_dim = facts["head_dim"]
    if config.per_layer_attributes and "head_dim" in config.per_layer_attributes:
        head_dim = config.per_layer_config[main].head_dim
    found = _entry(config, entries[main] or {}, bases[main], head_dim)
    of_attention = {base for base, reach in zip(bases, reaches, strict=True) if reach is not None}
    return found if len(of_attention) == 1 else found | {"rotary_base_by_layer": bases}


def _rotates(config: Any, layer: int, reach: str) -> bool:
    if value_of(config, "no_rope_layers") is not None:  # 1 where there is rotation
        return bool(config.no_rope_layers[layer])
    if config.model_type not in _ROTATE_IN_WINDOWS_ONLY or value_of(config, "sliding_window") is None:
        return True
    if value_of(config, "prefix_dense_sliding_window_pattern") == 1 and config.mlp_layer_types[layer] == "dense":
        return True
    return reach == "sliding"


def _base(config: Any, layer: int, entry: dict[str, Any] | None) -> float | None:
    if value_of(config, "layer_rope_theta") is not None:
        return config.layer_rope_theta[layer] or None
    return None if entry is None else entry["rope_theta"]


def _entry(config: Any, entry: dict[str, Any], base: float | None, head_dim: int | None) -> dict[str, Any]:
    """What one entry of `rope_parameters` says."""
    scaling = entry.get("rope_type", "default")
    rotated = value_of(config, "qk_rope_head_dim")
    if rotated is None and head_dim is not None:
        fraction = entry.get("partial_rotary_factor", 1.0)
        rotated = 2 * int(fraction * head_dim // 2) if scaling == "proportional" else int(fraction * head_dim)
    return {
        "rotary_base": base,
        "rotary_dim": rotated,
        "rope_scaling": None if scaling == "default" else scaling,
        "rope_scaling_factor": entry.get("factor"),
    }


_EPS = ("eps", "variance_epsilon")


def is_norm(module: Any) -> bool:
    """Whether a module is a norm, by its class name."""
    return "Norm" in type(module).__name__


def read_norm(norm: nn.Module, width: int) -> dict[str, Any]:
    """Kind, epsilon and offset of a norm.

    Arguments:
        norm: the module. Its own weights are not used, so they may be on any device, or on none.
        width: of the vectors that it takes.
    """
    found: dict[str, Any] = {}
    eps = next((getattr(norm, name) for name in _EPS if getattr(norm, name, None) is not None), None)
    if isinstance(eps, float):
        found["norm_eps"] = eps
    vectors = torch.linspace(-1.0, 2.0, 2 * width, dtype=torch.float32, device="cpu").view(2, width) ** 2
    try:
        plain, shifted = _applied(norm, 1.0, vectors), _applied(norm, 1.0, vectors + 1.0)
        without_weight = _applied(norm, 0.0, vectors)
    except (TypeError, RuntimeError):  # a norm that wants more than its input
        return found
    found["normalization"] = "LayerNorm" if torch.allclose(plain, shifted, atol=1e-3) else "RMSNorm"
    if getattr(norm, "weight", None) is not None:
        found["norm_weight_offset"] = bool(without_weight.abs().max() > 0)
    return found


@torch.no_grad()
def _applied(norm: nn.Module, weight: float, vectors: Tensor) -> Tensor:
    """The output of a norm whose weights are all one number and whose biases are 0; no hook of it runs."""
    probe = copy.copy(norm)
    probe.__dict__["_parameters"] = {
        name: None
        if own is None
        else nn.Parameter(torch.full(own.shape, 0.0 if name == "bias" else weight, dtype=torch.float32, device="cpu"))
        for name, own in norm._parameters.items()
    }
    return type(norm).forward(probe, vectors)

"""How positions come into the model, by its config."""

from __future__ import annotations

from typing import Any

from interp.model.spec.values import value_of

__all__ = ["read_positions"]

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

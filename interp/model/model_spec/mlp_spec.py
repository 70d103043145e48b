"""MLPs of a model, which layers have experts, and linear maps of whatever class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.activations import ACT2CLS

from interp.architectures import Sublayer, submodule
from interp.model.model_spec.lookups import linear_maps, widths

__all__ = ["read_mlps"]


_SHARED = ("shared_expert", "shared_experts", "shared_mlp")
# Families that call their activation as a function, and have no field for it.
_IN_CODE = {"bloom": "gelu_pytorch_tanh", "lfm2": "silu", "lfm2_moe": "silu", "lfm3": "silu"}


def read_mlps(
    layers: Sequence[tuple[nn.Module, Sublayer] | None], config: Any, facts: dict[str, Any]
) -> dict[str, Any]:
    """The fields of a `ModelSpec` about MLPs.

    Arguments:
        layers: each layer and what the record says of its MLP; None for a layer without one.
        config: the text model's.
        facts: what the config says, by field.
    """
    types = tuple("none" if pair is None else "experts" if _experts(*pair) else "dense" for pair in layers)
    found: dict[str, Any] = {"mlp_types": types, "first_dense_layers": None}
    if set(types) == {"none"}:
        return found
    if "experts" in types:
        found["first_dense_layers"] = types.index("experts")
        layer, sublayer = next(pair for pair, kind in zip(layers, types, strict=True) if pair and kind == "experts")
        found |= _read_experts(layer, sublayer, facts)
    hidden_size = facts["hidden_size"]
    dense = [pair for pair in layers if pair is not None and _projection(*pair, hidden_size) is not None]
    if dense:
        found |= _read_dense(*dense[0], hidden_size)
    elif "expert_size" in found:
        found["mlp_size"] = found["expert_size"]
    if facts["activation"] is None:
        layer, sublayer = next(pair for pair in layers if pair is not None)
        found["activation"] = _activation(layer, sublayer, config)
    return found


def _experts(layer: nn.Module, sublayer: Sublayer) -> nn.Module | None:
    """The routed experts: in the MLP, or (Gemma 4) beside it."""
    mlp = submodule(layer, sublayer.module)
    beside = [child for name, child in layer.named_children() if name == "experts"]
    inside = {} if mlp is None else dict(mlp.named_modules())
    routed = [part for path, part in inside.items() if not set(_SHARED) & set(path.split("."))]
    return next((part for part in (*beside, *routed) if "Experts" in type(part).__name__), None)


def _projection(layer: nn.Module, sublayer: Sublayer, hidden_size: int) -> nn.Module | None:
    """The last map of a dense MLP; None where it is a mixture."""
    if sublayer.projection is not None:
        return submodule(layer, sublayer.projection)
    mlp = submodule(layer, sublayer.module)
    if mlp is None or any("Experts" in type(part).__name__ for part in mlp.modules()):
        return None
    back = [inner for _, inner in linear_maps(mlp) if (widths(inner) or (0, 0))[1] == hidden_size]
    return back[0] if len(back) == 1 else None


def _read_dense(layer: nn.Module, sublayer: Sublayer, hidden_size: int) -> dict[str, Any]:
    mlp, projection = submodule(layer, sublayer.module), _projection(layer, sublayer, hidden_size)
    taken = widths(projection)
    if mlp is None or taken is None:
        return {}
    maps = [inner for _, inner in linear_maps(mlp) if inner is not projection]
    into = sum(given for inner in maps for takes, given in [widths(inner) or (0, 0)] if takes == hidden_size)
    return {
        "mlp_size": taken[0],
        "gated_mlp": into == 2 * taken[0],
        "mlp_bias": any(getattr(inner, "bias", None) is not None for inner in maps),
    }


def _read_experts(layer: nn.Module, sublayer: Sublayer, facts: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    mlp = submodule(layer, sublayer.module)
    shared = any(name in _SHARED for where in (layer, mlp) if where is not None for name, _ in where.named_children())
    if facts["num_shared_experts"] is None:
        found["num_shared_experts"] = 1 if shared else None
    experts = _experts(layer, sublayer)
    # Of experts that lie side by side (JetMoE's two maps), the MLP holds them all.
    holder = mlp if experts is not None and len(list(experts.parameters())) == 1 else experts
    if holder is None or not facts["num_experts"] or not facts["hidden_size"]:
        return found
    parameters = [(name, p) for name, p in holder.named_parameters() if p.is_floating_point()]
    dims = max((p.dim() for _, p in parameters), default=0)
    sizes = [p.numel() // (facts["num_experts"] * facts["hidden_size"]) for _, p in parameters if p.dim() == dims]
    if dims >= 2 and min(sizes, default=0) > 0:
        found["expert_size"] = min(sizes)
        found["gated_mlp"] = sum(sizes) == 3 * min(sizes)
        found["mlp_bias"] = any("bias" in name for name, _ in parameters)
    return found


def _activation(layer: nn.Module, sublayer: Sublayer, config: Any) -> str | None:
    if config.model_type in _IN_CODE:
        return _IN_CODE[config.model_type]
    mlp = submodule(layer, sublayer.module)
    modules = () if mlp is None else mlp.modules()
    names = {nn.GELU: "gelu", **{kind: name for name, kind in ACT2CLS.items() if isinstance(kind, type)}}
    return next((names[type(module)] for module in modules if type(module) in names), None)

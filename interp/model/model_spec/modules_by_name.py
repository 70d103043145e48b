"""Reads off modules what no config says: by their classes, shapes and parameters."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from interp.architectures import Architecture, Candidates, candidates
from interp.errors import InterpError
from interp.model.model_spec.attention_spec import is_norm, read_attention, read_norm
from interp.model.model_spec.lookups import widths
from interp.model.model_spec.mlp_spec import read_mlps

__all__ = ["read_modules"]


def read_modules(module: Any, facts: dict[str, Any], architecture: Architecture | None) -> dict[str, Any]:
    """The fields of a `ModelSpec` that a model's modules determine.

    Arguments:
        module: the model, with its head.
        facts: what its config says, by field.
        architecture: where things are; None: by the table.
    """
    found: dict[str, Any] = {"architecture": type(module).__name__, "num_parameters": module.num_parameters()}
    if facts["dtype"] is None:
        found["dtype"] = module.dtype
    given = _candidates(module) if architecture is None else Candidates((architecture,), known=True)
    if given is None:
        return found
    record = given.records[0]
    config = module.config.get_text_config()
    layers = list(module.get_submodule(record.layers))
    roles = [dict(record.sublayers(layer)) for layer in layers]
    found["num_layers"] = len(layers)
    found |= _ends(module, record, facts)
    facts = {**facts, **found}
    found |= _norms(module, record, layers, facts)
    found |= _residual_scale(layers[0], roles[0])
    found |= _positions(module, record, layers, facts, known=given.known)
    found |= _kinds(record, layers, roles, facts)
    facts = {**facts, **found}
    attentions = [
        (layer.get_submodule(role["attention"].module), role["attention"]) if "attention" in role else None
        for layer, role in zip(layers, roles, strict=True)
    ]
    found |= read_attention(attentions, config, facts)
    if record.mlp is not None or not any("MLP" in type(part).__name__ for part in layers[-1].modules()):
        mlps = [(layer, role["mlp"]) if "mlp" in role else None for layer, role in zip(layers, roles, strict=True)]
        found |= read_mlps(mlps, config, facts)
    if not given.known:  # how the parts of a layer are summed is then a guess, which no module shows
        found |= dict.fromkeys(("parallel_residual", "norm_placement", "residual_scale"))
    return found


def _candidates(module: Any) -> Candidates | None:
    try:
        return candidates(module.config, module)
    except InterpError:  # a family that is refused, or a layout that is not in the table: the config has to do
        return None


def _ends(module: nn.Module, record: Architecture, facts: dict[str, Any]) -> dict[str, Any]:
    """Embedding and head."""
    embedding, head = module.get_submodule(record.embedding), module.get_submodule(record.head)
    found: dict[str, Any] = {"head_bias": getattr(head, "bias", None) is not None}
    given = widths(head)
    if given is not None:
        found["vocab_size"] = given[1]
    weight = getattr(embedding, "weight", None)
    if facts["hidden_size"] is None and weight is not None:
        found["hidden_size"] = weight.shape[-1]
    found["tied_embeddings"] = weight is not None and weight is getattr(head, "weight", None)
    for name in ("scalar_embed_scale", "embed_scale"):
        if isinstance(scale := getattr(embedding, name, None), float | int):
            return found | {"embedding_scale": float(scale)}
    return found


def _norms(module: nn.Module, record: Architecture, layers: list[Any], facts: dict[str, Any]) -> dict[str, Any]:
    of_layers = [child for layer in layers for child in layer.children() if is_norm(child)]
    norm = next(iter(of_layers), None) if record.final_norm is None else module.get_submodule(record.final_norm)
    found: dict[str, Any] = {} if norm is None else read_norm(norm, facts["hidden_size"])
    near = (record.embedding, record.embedding.rpartition(".")[0])
    found["embedding_norm"] = record.family == "nanochat" or any(  # NanoChat's last norm is also its first
        is_norm(part) and "embed" in path and path.rpartition(".")[0] in near and path != record.final_norm
        for path, part in module.named_modules()
    )
    placements = {_placement(record.of_layer(layer), layer) for layer in layers} - {None}
    if placements:
        found["norm_placement"] = placements.pop() if len(placements) == 1 else "mixed"
    return found


def _placement(record: Architecture, layer: Any) -> str | None:
    """Where the norms of one layer stand, by what the record says is added to the residual stream."""
    sublayers = [sublayer for _, sublayer in record.sublayers(layer)]
    behind = {path for sublayer in sublayers for path in (*sublayer.added, sublayer.norm_after)}
    norms = {
        path
        for path, part in layer.named_modules()
        if is_norm(part) and not any(path.startswith(f"{sublayer.module}.") for sublayer in sublayers)
    }
    before, after = bool(norms - behind), bool(norms & behind)
    return "both" if before and after else "before" if before else "after" if after else None


def _positions(
    module: nn.Module, record: Architecture, layers: list[Any], facts: dict[str, Any], *, known: bool
) -> dict[str, Any]:
    if facts["positional_embedding"] is not None:
        return {}
    root = module.get_submodule(record.layers.rpartition(".")[0])
    outside = {name: part for name, part in root.named_modules() if part is not root}
    if any("Rotary" in type(part).__name__ for part in outside.values()):
        return {"positional_embedding": "rotary"}
    if any("Relative" in type(part).__name__ for part in layers[0].modules()):
        return {"positional_embedding": "relative"}
    if hasattr(root, "pos_encoding") or any("Sinusoidal" in type(part).__name__ for part in outside.values()):
        return {"positional_embedding": "sinusoidal"}
    if any(name in ("wpe", "positions_embed", "embed_positions") for name in outside):
        return {"positional_embedding": "absolute"}
    if any("alibi" in name for name in vars(sys.modules[type(layers[0]).__module__])):
        return {"positional_embedding": "alibi"}
    return {"positional_embedding": "none"} if known else {}


def _residual_scale(layer: Any, role: dict[str, Any]) -> dict[str, Any]:
    """The number by which all that a layer adds is multiplied, where it is one and not learned."""
    scales = {sublayer.scale for sublayer in role.values()}
    scale = getattr(layer, scales.pop() or "", None) if len(scales) == 1 else None
    return {"residual_scale": float(scale)} if isinstance(scale, float | int) else {}


def _kinds(
    record: Architecture, layers: list[Any], roles: list[dict[str, Any]], facts: dict[str, Any]
) -> dict[str, Any]:
    """What mixes tokens in each layer."""
    kinds = []
    for layer, role in zip(layers, roles, strict=True):
        parts = ["attention"] if "attention" in role else []
        inside = [part for part in layer.modules() if part is not layer]
        if record.attention is None and any(type(part).__name__.endswith("Attention") for part in inside):
            parts = ["attention"]  # an attention block that only the mixer reads (Zamba)
        if "mixer" in role:
            parts.append(_mixer(layer.get_submodule(role["mixer"].module)))
        kinds.append("+".join(parts) or "none")
    found: dict[str, Any] = {"layer_types": tuple(kinds)}
    reaches = facts["attention_types"]
    if reaches is not None and len(reaches) == len(kinds):
        found["attention_types"] = tuple(
            reach if "attention" in kind.split("+") else None for reach, kind in zip(reaches, kinds, strict=True)
        )
    return found


def _mixer(module: Any) -> str:
    name = type(module).__name__
    if hasattr(module, "ssm_state_size"):
        return "mamba"
    if "Conv" in name:
        return "convolution"
    return "recurrent" if "Recurrent" in name else "linear_attention"

"""Heads of a model: which are meant, keys and queries before rotation, vectors through the output projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from interp.activations.layer_maps import output_weight
from interp.architectures import submodule
from interp.errors import InterpError
from interp.model.hooks import hooks_aside
from interp.model.layer_parts import ModelParts, Projection, model_parts
from interp.model.resolve import head_out_place, why_missing
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["chosen_heads", "heads_of", "projected", "projection_of", "through_output"]

_parts: WeakKeyDictionary[StandardizedTransformer, ModelParts] = WeakKeyDictionary()


def chosen_heads(model: StandardizedTransformer, given: Any) -> list[tuple[int, int]]:
    """Heads as (layer, head).

    Arguments:
        model: the model.
        given: `[{"layer": 0, "head": 3}, ...]`, or `all`: those of every layer that has attention.

    Raises:
        InterpError: something else, or a head that the model does not have.
    """
    layers = [layer for layer in range(model.num_layers) if why_missing(model, Site("z", layer)) is None]
    if isinstance(given, str) and given == "all":
        return [(layer, head) for layer in layers for head in range(heads_of(model, layer))]
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence) or not given:
        raise InterpError(f"attn_heads: expected 'all' or [{{'layer': 0, 'head': 3}}, ...], got {given!r:.80}.")
    found = []
    for one in given:
        if not isinstance(one, Mapping) or set(one) != {"layer", "head"}:
            raise InterpError(f"attn_heads: expected a dictionary with layer and head, got {one!r:.80}.")
        layer, head = int(one["layer"]), int(one["head"])
        if layer not in layers:
            raise InterpError(
                f"attn_heads: layer {layer} has no heads. Layers with some: {', '.join(map(str, layers))}."
            )
        if not 0 <= head < heads_of(model, layer):
            raise InterpError(f"attn_heads: layer {layer} has {heads_of(model, layer)} heads, from 0; got head {head}.")
        if (layer, head) not in found:
            found.append((layer, head))
    return found


def heads_of(model: StandardizedTransformer, layer: int) -> int:
    """How many heads a layer has; in some families they differ from layer to layer."""
    return head_out_place(model, layer, f"z.{layer}").z.num_heads


def projection_of(model: StandardizedTransformer, layer: int, kind: str) -> Projection:
    """What gives a layer's keys (`k`) or queries (`q`); what is found is kept with the model.

    Raises:
        InterpError: the layer has no such projection.
    """
    if model not in _parts:
        _parts[model] = model_parts(model)
    parts = _parts[model].layers[layer]
    projection = parts.heads.get(kind)
    if projection is None or projection.heads is None:
        raise InterpError(
            f"layer {layer} has no projection to {'keys' if kind == 'k' else 'queries'}: {parts.no_heads}"
        )
    return projection


def projected(model: StandardizedTransformer, layer: int, kind: str, entering: Tensor) -> Tensor:
    """Keys or queries as their projection gives them, before rotation and norms.

    Arguments:
        model: the model.
        layer: which.
        kind: `k` or `q`.
        entering: (example, position, hidden), what attention receives.

    Returns:
        (example, position, head, head_dim); of keys, key-value heads.

    Raises:
        InterpError: the layer has no such projection.
    """
    projection = projection_of(model, layer, kind)
    module: Any = submodule(model.layer(layer)._module, projection.path)
    with torch.no_grad(), hooks_aside(model._module):
        given: Tensor = module(entering)
    given = given if projection.columns is None else given[..., projection.columns.to(given.device)]
    return given.unflatten(-1, (projection.heads, -1))


def through_output(model: StandardizedTransformer, layer: int, heads: Sequence[int], vectors: Tensor) -> Tensor:
    """Vectors of heads through each head's part of the output projection, without its bias.

    Arguments:
        model: the model.
        layer: which.
        heads: whose part, for each head of the vectors.
        vectors: (example, position, head, head_dim).

    Returns:
        (example, position, head, hidden).
    """
    with torch.no_grad(), hooks_aside(model._module):
        matrices = output_weight(model, layer, vectors.shape[-1])[list(heads)]  # head, width, hidden
    return torch.einsum("bphn,hnd->bphd", vectors.to(matrices.device), matrices)

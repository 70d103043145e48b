"""Resolves a site to its place in one model: the family's record, applied to its modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

import torch

from interp.architectures import Sublayer, submodule
from interp.errors import InterpError
from interp.model.hooks import changes_output
from interp.model.model_spec.lookups import is_linear, widths
from interp.model.places import (
    AddedPlace,
    AttentionPlace,
    HeadOutPlace,
    HeadPlace,
    LogitsPlace,
    ModulePlace,
    Place,
    ZPlace,
)
from interp.model.verdicts import once
from interp.model.vision_sites import vision_place
from interp.sites import VISION_KINDS, Site

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["Attentions", "head_out_place", "norm_behind", "place_of", "projection_width", "sublayer_of", "why_missing"]

_ROLES = {"attn": "attention", "mixer": "mixer", "mlp": "MLP"}
_ATTENTION_POINTS = ("q", "k", "v", "scores", "pattern")
_HEAD_AXIS = {"q": 1, "k": 1, "v": 1, "scores": 1, "pattern": 1, "z": 2, "head_out": 2}


def place_of(model: StandardizedTransformer, site: Site) -> Place:
    """Where a site is in a model.

    Arguments:
        model: the model.
        site: a site of it.

    Raises:
        InterpError: the model, or this layer of it, has no such site; the message says why and what there is instead.
    """
    reason = why_missing(model, site)
    if reason is not None:
        raise InterpError(f"site {str(site)!r} does not exist in {type(model._module).__name__}: {reason}")
    if site.kind in VISION_KINDS:
        return vision_place(model, site)
    whole = _whole(model, site)
    return whole if site.head is None else HeadPlace(whole, _HEAD_AXIS[site.kind], site.head, str(site))


def why_missing(model: StandardizedTransformer, site: Site) -> str | None:
    """Why a model does not have a site; None where it has it."""
    if site.kind == "final_norm":
        return None if model.architecture.final_norm else "the model has no norm after its last layer."
    if site.layer is None or site.kind in ("resid_pre", "resid_post", *VISION_KINDS):
        return None
    layer = model.layer(site.layer)._module
    record = model.architecture.of_layer(layer)
    if site.kind == "resid_mid":
        if record.parallel:
            return (
                "attention and MLP both read resid_pre (parallel residual). Use resid_pre, attn_out, mlp_out or "
                "resid_post."
            )
        return None if record.middle is not None else "its layers have one stage. Use resid_pre or resid_post."
    if site.kind.startswith("mlp"):
        sublayer = sublayer_of(model, "mlp", site.layer)
        if sublayer is None:
            return f"{_there(model, site.layer, 'no MLP')}"
        if site.kind == "mlp_post" and not _has(layer, sublayer.projection):
            return (
                f"the MLP of layer {site.layer} is {type(submodule(layer, sublayer.module)).__name__}, which has no "
                "single layer of neurons (a mixture of experts routes each token on its own). Use mlp_in or mlp_out."
            )
        return None
    role = "mixer" if site.kind.startswith("mixer") else "attention"
    sublayer = sublayer_of(model, role, site.layer)
    if sublayer is None:
        return _there(model, site.layer, "no attention" if role == "attention" else "no mixer but attention")
    if site.kind in ("z", "head_out") and not _has(layer, sublayer.projection):
        return f"the record of family {record.family!r} names no output projection. Give attn_projection_name."
    if site.kind == "head_out" and not _projects_linearly(model, site.layer, str(sublayer.projection)):
        return (
            f"the output projection of layer {site.layer} ({_class_of(submodule(layer, str(sublayer.projection)))}) is "
            "not linear, since it quantizes what it receives: what the heads add one by one is not what they add "
            "together. Use z or attn_out, or a model whose weights alone are quantized."
        )
    if site.kind in _ATTENTION_POINTS:
        return model.attention_access.available(site.kind, site.layer)
    return None


def _projects_linearly(model: StandardizedTransformer, layer: int, path: str) -> bool:
    """Whether the heads of a layer can be projected one by one; tried once."""

    def find() -> bool:
        envoy = model.layer(layer).get(path)
        return is_linear(envoy._module, envoy, model.dtype, model.device)

    return once(model, f"linear projection of layer {layer}", find)


def _class_of(module: Any) -> str:
    weight = getattr(module, "weight", None)
    kind = type(weight).__name__ if isinstance(weight, torch.Tensor) else "packed"
    return type(module).__name__ if kind == "Parameter" else f"{type(module).__name__}, weights: {kind}"


def projection_width(model: StandardizedTransformer, site: Site) -> int:
    """How many numbers the output projection of an MLP receives.

    Raises:
        InterpError: the model has no such site.
    """
    place = place_of(model, site)
    assert isinstance(place, ModulePlace)
    found = next((sizes for inner in place.envoy._module.modules() if (sizes := widths(inner)) is not None), None)
    if found is None:
        raise InterpError(f"width of {site}: {type(place.envoy._module).__name__} does not say how wide its input is.")
    return found[0]


def sublayer_of(model: StandardizedTransformer, role: str, layer: int) -> Sublayer | None:
    """The `attention`, `mixer` or `mlp` of a layer; None where it has none."""
    return dict(model.architecture.sublayers(model.layer(layer)._module)).get(role)


def _there(model: StandardizedTransformer, layer: int, what: str) -> str:
    """What a layer has in place of what it lacks, and in which layers that is."""
    role = {"no attention": "attention", "no MLP": "mlp"}.get(what, "mixer")
    found = [
        f"{name} ({type(submodule(model.layer(layer)._module, part.module)).__name__})"
        for name, part in model.architecture.sublayers(model.layer(layer)._module)
    ]
    others = [str(i) for i in range(model.num_layers) if sublayer_of(model, role, i) is not None]
    where = f"Layers with one: {', '.join(others)}." if others else "No layer of it has one."
    use = {"no attention": " Use mixer_in and mixer_out.", "no mixer but attention": " Use attn_in and attn_out."}
    return f"layer {layer} has {what}; it has {' and '.join(found)}. {where}{use.get(what, '')}"


def _whole(model: StandardizedTransformer, site: Site) -> Place:
    name = str(site)
    if site.kind == "logits":
        return LogitsPlace(model)
    if site.kind == "embed":
        return ModulePlace(model.layer(0), "input", name)
    if site.kind == "final_norm":
        if model.architecture.final_norm_runs_early:
            return ModulePlace(model.get(model.tail.paths[1]), "input", name)
        return ModulePlace(model.get(str(model.architecture.final_norm)), "output", name)
    assert site.layer is not None
    layer = model.layer(site.layer)
    if site.kind == "resid_pre":
        return ModulePlace(layer, "input", name)
    if site.kind == "resid_post":
        if not changes_output(layer._module):
            return ModulePlace(layer, "output", name)
        # nnsight's `output` is what there is before the user's hooks: the next module is given what they made of it.
        is_last = site.layer == model.num_layers - 1
        return ModulePlace(model.get(model.tail.paths[0]) if is_last else model.layer(site.layer + 1), "input", name)
    if site.kind == "resid_mid":
        middle = model.architecture.of_layer(layer._module).middle
        return ModulePlace(layer.get(str(middle)), "input", name, in_place=True)
    if site.kind in _ATTENTION_POINTS:
        return AttentionPlace(model.attention_access, site.kind, site.layer, name)
    role = "mlp" if site.kind.startswith("mlp") else "mixer" if site.kind.startswith("mixer") else "attention"
    sublayer = sublayer_of(model, role, site.layer)
    assert sublayer is not None
    if site.kind in ("attn_in", "mixer_in", "mlp_in"):
        return ModulePlace(layer.get(sublayer.module), "input", name)
    if site.kind in ("attn_out", "mixer_out", "mlp_out"):
        return _added(model, layer, sublayer, name)
    if site.kind == "mlp_post":
        return ModulePlace(layer.get(str(sublayer.projection)), "input", name)
    return head_out_place(model, site.layer, name).z if site.kind == "z" else head_out_place(model, site.layer, name)


def head_out_place(model: StandardizedTransformer, layer: int, name: str) -> HeadOutPlace:
    """Where the heads of a layer, which has attention with a projection, are; also where that is not linear."""
    envoy, sublayer = model.layer(layer), sublayer_of(model, "attention", layer)
    assert sublayer is not None
    projection = ModulePlace(envoy.get(str(sublayer.projection)), "input", name)
    z = ZPlace(projection, _num_heads(model, envoy.get(sublayer.module)._module))
    return HeadOutPlace(z, projection.envoy, norm_behind(envoy, sublayer), _added(model, envoy, sublayer, name))


def _added(model: StandardizedTransformer, layer: Any, sublayer: Sublayer, name: str) -> AddedPlace:
    there = [path for path in sublayer.sources if _has(layer._module, path)]
    scale = None if sublayer.scale is None else getattr(layer._module, sublayer.scale)
    return AddedPlace([ModulePlace(layer.get(path), "output", name) for path in there], scale, name, model.trace_memory)


def norm_behind(layer: Any, sublayer: Sublayer) -> Any | None:
    """The norm between the output projection and the residual stream, where there is one."""
    inside = (sublayer.module, sublayer.projection)
    return None if sublayer.sources[0] in inside else layer.get(sublayer.sources[0])


def _num_heads(model: StandardizedTransformer, attention: Any) -> int:
    """The heads of one attention module: in some families (Laguna) they differ from layer to layer."""
    own = getattr(attention, "num_heads", None)
    return own if isinstance(own, int) else model.num_heads


def _has(layer: Any, path: str | None) -> bool:
    return path is not None and submodule(layer, path) is not None


class Attentions:
    """Layer -> the envoy of its attention; None where it has none.

    It does not hold the model, which holds it: weights are freed with the last reference to a model.
    """

    def __init__(self, model: StandardizedTransformer) -> None:
        self._model = ref(model)

    def __call__(self, layer: int) -> Any | None:
        model = self._model()
        assert model is not None  # who asks holds it
        sublayer = sublayer_of(model, "attention", layer)
        return None if sublayer is None else model.layer(layer).get(sublayer.module)

    def __reduce__(self) -> tuple[Any, ...]:  # a trace that runs elsewhere is sent with its model
        return Attentions, (self._model(),)

"""TransformerLens's names of a model's tensors, and where each is: a name gives a place to read and to write.

A point has one name by the module that it is at (`blocks.0.attn.q.hook_out`) and those by which papers know it
(`blocks.0.attn.hook_q`). Where a family has no such tensor, the name is not there, and `NoPoint` says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from interp.architectures import Sublayer
from interp.compat.transformer_lens.hook_points import near_names
from interp.errors import InterpError
from interp.model.layer_parts import LayerParts, ModelParts, Projection, model_parts
from interp.model.places import AddedPlace, HeadOutPlace, ModulePlace, Place
from interp.model.places_inside import (
    HeadInputsPlace,
    NewTokensPlace,
    NormPlace,
    ProjectedPlace,
    ProjectionInputPlace,
    RowsPlace,
    TransposedPlace,
    norm_kind,
)
from interp.model.resolve import head_out_place, place_of, why_missing
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["NoSuchName", "Point", "Points"]


class NoSuchName(InterpError, AttributeError):
    """A name that this model does not have; `hasattr` is False for it."""


@dataclass(frozen=True)
class Point:
    """One place under TransformerLens's names.

    Arguments:
        name: by the module that it is at.
        aliases: its other names.
        place: where it is.
        position_axis: the axis of positions.
        gate: the field of the config that switches it on, by a method `set_...`; None: it is always there.
    """

    name: str
    aliases: tuple[str, ...]
    place: Place
    position_axis: int = 1
    gate: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All its names, those that papers use first."""
        return (*self.aliases, self.name)


@dataclass
class Points:
    """The points of one model, in the order of its forward pass.

    Attributes:
        all: the points.
        by_name: under each of their names.
        missing: names that the family or a layer lacks -> why.
        parts: what stands inside each layer.
        why_no_sum: why the last residual stream is not the sum of embeddings, attention and MLPs; None where it is.
    """

    all: list[Point] = field(default_factory=list)
    by_name: dict[str, Point] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    parts: list[LayerParts] = field(default_factory=list)
    why_no_sum: str | None = None

    @classmethod
    def of(cls, model: StandardizedTransformer) -> Points:
        """Find the points of a model; runs it once, on a few tokens."""
        parts = model_parts(model)
        points = cls(parts=parts.layers, why_no_sum=_why_no_sum(model, parts))
        for point in _points(model, parts, points.missing):
            points.all.append(point)
            points.by_name |= dict.fromkeys(point.names, point)
        return points

    def refuse(self, name: str) -> NoSuchName:
        """What is said of a name that is no point: why the model lacks it, or the nearest names.

        Arguments:
            name: what was asked for.
        """
        reason = self.missing.get(name)
        if reason is not None:
            return NoSuchName(f"this model has no hook point {name!r}: {reason}")
        return NoSuchName(f"there is no hook point {name!r}. {near_names(name, self.by_name)}")


def _why_no_sum(model: StandardizedTransformer, parts: ModelParts) -> str | None:
    if parts.embedding_scale is None:
        return "what enters its layers is more than the embeddings of tokens and positions."
    for layer in range(model.num_layers):
        for role, sublayer in model.architecture.sublayers(model.layer(layer)._module):
            if role == "mixer":
                return f"layer {layer} also adds what its mixer gives."
            if sublayer.residual_scale or sublayer.residual_norm or sublayer.norm_after:
                return f"layer {layer} scales or norms the residual stream itself."
    return None


def _points(model: StandardizedTransformer, parts: ModelParts, missing: dict[str, str]) -> Iterator[Point]:
    yield from _embeddings(model, parts, missing)
    for layer, own in enumerate(parts.layers):
        yield from _Layer(model, layer, own, missing).points()
    yield from _ends(model, missing)


def _embeddings(model: StandardizedTransformer, parts: ModelParts, missing: dict[str, str]) -> Iterator[Point]:
    embedding = model.get(model.architecture.embedding)
    yield Point("embed.hook_in", (), RowsPlace(embedding, "input", model.fed, "embed.hook_in"))
    found = [Point("embed.hook_out", (), ModulePlace(embedding, "output", "embed.hook_out"))]
    if parts.embedding_norm is not None:  # what the layers begin with has gone through it
        found += _norm_points(model, "embed_ln", model.get(parts.embedding_norm), missing)
    last = found[-1]
    scaled = parts.embedding_scale not in (None, 1.0)
    yield from found[:-1]
    yield last if scaled else replace(last, aliases=("hook_embed",))
    if scaled:  # what the residual stream begins with
        assert isinstance(last.place, ModulePlace)
        yield Point("hook_embed", (), AddedPlace([last.place], parts.embedding_scale, "hook_embed", model.trace_memory))
    if parts.position_table is None:
        kind = model.spec.positional_embedding
        reason = f"nothing is added to the embeddings for positions (positional embedding: {kind})."
        missing |= dict.fromkeys(("pos_embed.hook_in", "pos_embed.hook_out", "hook_pos_embed"), reason)
        return
    table = model.get(parts.position_table)
    if type(table._module) is nn.Embedding:
        yield Point("pos_embed.hook_in", (), RowsPlace(table, "input", model.fed, "pos_embed.hook_in"))
    yield Point("pos_embed.hook_out", ("hook_pos_embed",), RowsPlace(table, "output", model.fed, "hook_pos_embed"))


def _ends(model: StandardizedTransformer, missing: dict[str, str]) -> Iterator[Point]:
    path = model.architecture.final_norm
    names = [f"ln_final.{part}" for part in ("hook_in", "hook_scale", "hook_normalized", "hook_out")]
    if path is None:
        missing |= dict.fromkeys(names, "the model has no norm after its last layer.")
    elif model.architecture.final_norm_runs_early:
        missing |= dict.fromkeys(names[:3], "its last norm runs before the layers too. Use ln_final.hook_out.")
        yield Point(names[3], (), place_of(model, Site("final_norm")))
    else:
        yield from _norm_points(model, "ln_final", model.get(path), missing)
    head = model.get(model.tail.paths[-1])
    yield Point("unembed.hook_in", (), ModulePlace(head, "input", "unembed.hook_in"))
    yield Point("unembed.hook_out", ("hook_unembed",), ModulePlace(head, "output", "hook_unembed"))


def _norm_points(model: StandardizedTransformer, name: str, envoy: Any, missing: dict[str, str]) -> Iterator[Point]:
    weight = getattr(envoy._module, "weight", None)
    width = model.hidden_size if weight is None else weight.shape[-1]
    dtype = model.dtype if weight is None else weight.dtype
    device = model.device if weight is None else weight.device
    kind = norm_kind(envoy._module, width, device=device, dtype=dtype)
    yield Point(f"{name}.hook_in", (), ModulePlace(envoy, "input", f"{name}.hook_in"))
    for part in ("scale", "normalized"):
        own = f"{name}.hook_{part}"
        if kind is None:
            missing[own] = f"{type(envoy._module).__name__} is neither a layer norm nor an RMS norm."
        else:
            yield Point(own, (), NormPlace(envoy, part, *kind, own, model.trace_memory))
    aliases = (f"{name.removesuffix('_norm').replace('attn.', 'attn.hook_')}_normed",) if name.endswith("_norm") else ()
    yield Point(f"{name}.hook_out", aliases, ModulePlace(envoy, "output", f"{name}.hook_out"))


class _Layer:
    """The points of one layer.

    Arguments:
        model: the model.
        layer: which.
        parts: what stands inside it.
        missing: is told what the layer lacks.
    """

    def __init__(self, model: StandardizedTransformer, layer: int, parts: LayerParts, missing: dict[str, str]) -> None:
        self.model, self.layer, self.parts, self.missing = model, layer, parts, missing
        self.envoy = model.layer(layer)
        self.sublayers = dict(model.architecture.sublayers(self.envoy._module))

    def points(self) -> Iterator[Point]:
        """All of them, in the order of the forward pass."""
        yield self._point("hook_in", self._site("resid_pre"), "hook_resid_pre")
        yield from self._norm("ln1")
        attention, mixer, mlp = (self.sublayers.get(role) for role in ("attention", "mixer", "mlp"))
        if attention is None:
            self._lacks(_ATTENTION, f"layer {self.layer} has no attention.")
        else:
            yield from self._attention(attention)
        if mixer is not None:
            yield self._point("mixer.hook_in", self._module(mixer.module, "input"))
            yield self._point("mixer.hook_out", self._module(mixer.module, "output"))
        reason = why_missing(self.model, Site("resid_mid", self.layer))
        if reason is None:
            yield self._point("hook_resid_mid", self._site("resid_mid"))
        else:
            self._lacks(("hook_resid_mid",), reason)
        yield from self._norm("ln2")
        if mlp is None:
            self._lacks(_MLP, f"layer {self.layer} has no MLP.")
        else:
            yield from self._mlp(mlp)
        yield self._point("hook_out", self._site("resid_post"), "hook_resid_post")

    def _attention(self, attention: Sublayer) -> Iterator[Point]:
        yield self._point("attn.hook_in", self._module(attention.module, "input"))
        yield from self._copies(attention)
        for kind in ("q", "k", "v"):
            projection = self.parts.heads.get(kind)
            if projection is None:
                self._lacks((f"attn.{kind}.hook_in", f"attn.{kind}.hook_out", f"attn.hook_{kind}"), self.parts.no_heads)
                continue
            yield self._point(f"attn.{kind}.hook_in", self._into(projection))
            yield self._point(f"attn.{kind}.hook_out", self._projected(projection), f"attn.hook_{kind}")
        for kind in ("q_norm", "k_norm"):
            yield from self._norm(kind, "attn.")
        for kind in ("q", "k"):
            site = Site(kind, self.layer)
            reason = why_missing(self.model, site)
            if reason is None and not self.parts.rotary:
                reason = f"layer {self.layer} does not rotate queries and keys. Use attn.hook_{kind}."
            if reason is None:
                place = NewTokensPlace(place_of(self.model, site), self.model.fed, f"attn.hook_rot_{kind}")
                yield self._point(f"attn.hook_rot_{kind}", place)
            else:
                self._lacks((f"attn.hook_rot_{kind}",), reason)
        for kind, name in (("scores", "attn.hook_attn_scores"), ("pattern", "attn.hook_pattern")):
            reason = why_missing(self.model, Site(kind, self.layer))
            if reason is None:
                yield self._point(name, self._site(kind), axis=2)
            else:
                self._lacks((name,), reason)
        yield from self._heads_out(attention)
        added = self._site("attn_out")
        own = self._module(attention.module, "output")
        if _is(added, own):
            yield self._point("attn.hook_out", own, "hook_attn_out")
            return
        yield self._point("attn.hook_out", own)
        yield from self._norm("ln1_post", alias="hook_attn_out" if self._is_norm(added, "ln1_post") else None)
        if not self._is_norm(added, "ln1_post"):
            yield self._point("hook_attn_out", added)

    def _copies(self, attention: Sublayer) -> Iterator[Point]:
        """What enters attention, a copy for each head."""
        names = {"attn_in": "qkv", "q_input": "q", "k_input": "k", "v_input": "v"}
        for name, kinds in names.items():
            own = f"attn.hook_{name}"
            if not self.parts.heads:
                self._lacks((own, f"hook_{name}"), self.parts.no_heads)
                continue
            norm = self.parts.norms.get("ln1")
            given = self._module(attention.module if norm is None else norm, "input")
            projections = tuple(self._projected(self.parts.heads[kind]) for kind in kinds)
            place = HeadInputsPlace(
                given, None if norm is None else given.envoy, projections, projections[0].heads or 1
            )
            gate = "use_attn_in" if name == "attn_in" else "use_split_qkv_input"
            yield self._point(own, place, f"hook_{name}", gate=gate)

    def _heads_out(self, attention: Sublayer) -> Iterator[Point]:
        reason = why_missing(self.model, Site("z", self.layer))
        if reason is not None:
            self._lacks(("attn.o.hook_in", "attn.hook_z", "attn.o.hook_out", "attn.hook_result"), reason)
            return
        whole = head_out_place(self.model, self.layer, "attn.hook_result")
        yield self._point("attn.o.hook_in", whole.z, "attn.hook_z")
        reason = why_missing(self.model, Site("head_out", self.layer))
        projected = ModulePlace(whole.projection, "output", "attn.o.hook_out")
        if reason is None:
            alone = AddedPlace([projected], whole.added.scale, "attn.hook_result", self.model.trace_memory)
            yield self._point(
                "attn.hook_result", HeadOutPlace(whole.z, whole.projection, None, alone), gate="use_attn_result"
            )
        else:
            self._lacks(("attn.hook_result",), reason)
        yield self._point("attn.o.hook_out", projected)

    def _mlp(self, mlp: Sublayer) -> Iterator[Point]:
        before = self.parts.norms.get("ln2", mlp.module)
        yield self._point("hook_mlp_in", self._module(before, "input"), gate="use_hook_mlp_in")
        yield self._point("mlp.hook_in", self._module(mlp.module, "input"))
        gated = "gate" in self.parts.mlp
        for kind, alias in (("gate", "mlp.hook_pre"), ("in", "mlp.hook_pre_linear" if gated else "mlp.hook_pre")):
            projection = self.parts.mlp.get(kind)
            if projection is None:
                why = self.parts.no_mlp or f"the MLP of layer {self.layer} has no gate. Use mlp.hook_pre."
                names = (
                    f"mlp.{kind}.hook_in",
                    f"mlp.{kind}.hook_out",
                    alias if self.parts.no_mlp else "mlp.hook_pre_linear",
                )
                self._lacks(names, why)
                continue
            yield self._point(f"mlp.{kind}.hook_in", self._into(projection))
            yield self._point(f"mlp.{kind}.hook_out", self._projected(projection), alias)
        reason = why_missing(self.model, Site("mlp_post", self.layer))
        if reason is None:
            yield self._point("mlp.out.hook_in", self._site("mlp_post"), "mlp.hook_post")
            yield self._point("mlp.out.hook_out", self._module(str(mlp.projection), "output"))
        else:
            self._lacks(("mlp.out.hook_in", "mlp.hook_post", "mlp.out.hook_out"), reason)
        added = self._site("mlp_out")
        own = self._module(str(mlp.projection) if mlp.is_spread else mlp.module, "output")
        if _is(added, own):
            yield self._point("mlp.hook_out", own, "hook_mlp_out")
            return
        yield self._point("mlp.hook_out", own)
        yield from self._norm("ln2_post", alias="hook_mlp_out" if self._is_norm(added, "ln2_post") else None)
        if not self._is_norm(added, "ln2_post"):
            yield self._point("hook_mlp_out", added)

    def _norm(self, name: str, inside: str = "", alias: str | None = None) -> Iterator[Point]:
        path = self.parts.norms.get(name)
        own = f"{inside}{name}"
        if path is None:
            where = {"ln1": "before attention", "ln2": "before the MLP"}.get(name, "there")
            names = tuple(f"{own}.{part}" for part in ("hook_in", "hook_scale", "hook_normalized", "hook_out"))
            further = (f"attn.hook_{name[0]}_normed",) if inside else ()
            self._lacks((*names, *further), f"layer {self.layer} has no norm {where} of its own.")
            return
        envoy = self.envoy.get(path)
        by_head = name in self.parts.by_head
        for point in _norm_points(self.model, f"blocks.{self.layer}.{own}", envoy, self.missing):
            aliases, place = point.aliases, TransposedPlace(point.place) if by_head else point.place
            if alias is not None and point.name.endswith("hook_out"):
                aliases = (f"blocks.{self.layer}.{alias}", *aliases)
            yield Point(point.name, aliases, place, 2 if by_head else 1)

    def _point(self, name: str, place: Place, *aliases: str, axis: int = 1, gate: str | None = None) -> Point:
        before = f"blocks.{self.layer}."
        return Point(before + name, tuple(before + alias for alias in aliases), place, axis, gate)

    def _lacks(self, names: tuple[str, ...], reason: str) -> None:
        self.missing |= {f"blocks.{self.layer}.{name}": reason for name in names}

    def _site(self, kind: str) -> Any:
        return place_of(self.model, Site(kind, self.layer))

    def _module(self, path: str, side: str) -> ModulePlace:
        return ModulePlace(self.envoy.get(path), side, f"blocks.{self.layer}.{path}.{side}")

    def _projected(self, projection: Projection) -> ProjectedPlace:
        return ProjectedPlace(self._module(projection.path, "output"), projection.columns, projection.heads)

    def _into(self, projection: Projection) -> Place:
        given = self._module(projection.path, "input")
        return given if projection.columns is None else ProjectionInputPlace(given, projection.columns)

    def _is_norm(self, added: AddedPlace, name: str) -> bool:
        path = self.parts.norms.get(name)
        return path is not None and _is(added, self._module(path, "output"))


def _is(added: AddedPlace, own: ModulePlace) -> bool:
    """Whether what is added to the residual stream is just what a module gives."""
    return added.scale is None and len(added.places) == 1 and added.places[0].envoy is own.envoy


_ATTENTION = (
    "attn.hook_in", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_rot_q", "attn.hook_rot_k",
    "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "attn.hook_result", "attn.hook_out", "hook_attn_out",
    *(f"attn.{part}.hook_{side}" for part in "qkvo" for side in ("in", "out")),
)  # fmt: skip
_MLP = (
    "mlp.hook_in", "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post", "mlp.hook_out", "hook_mlp_out",
    *(f"mlp.{part}.hook_{side}" for part in ("in", "gate", "out") for side in ("in", "out")),
)  # fmt: skip

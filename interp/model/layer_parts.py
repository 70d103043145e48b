"""Finds what stands inside each layer: its norms, the projections to queries, keys and values, the maps of its MLP.

No record names them, and names say little. A norm is known by whom it hands its output to, the heads of a fused
projection by what attention then receives: all is found in one small forward pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp import passes
from interp.architectures import Sublayer, submodule
from interp.model.hooks import hooks_aside
from interp.model.model_spec.attention_spec import is_norm
from interp.model.model_spec.lookups import widths
from interp.model.resolve import place_of, why_missing
from interp.model.verdicts import SMALL, sample_ids
from interp.model.visits import Visit, run_visiting
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["LayerParts", "ModelParts", "Projection", "model_parts"]

_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("Wq", "Wk", "Wv"))
_FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv")
_QK_NORMS = {"q_norm": re.compile(r"(q|query)_?(layer_?)?norm"), "k_norm": re.compile(r"(k|key)_?(layer_?)?norm")}
_ACTIVATIONS = ("act", "act_fn", "activation_fn", "activation", "activation_func", "gelu_impl")


@dataclass(frozen=True)
class Projection:
    """What one of several values is of the output of a linear map.

    Arguments:
        path: the map, from the layer.
        columns: which numbers of its output; None: all.
        heads: how many heads they are; None: they are none.
    """

    path: str
    columns: Tensor | None = None
    heads: int | None = None


@dataclass
class LayerParts:
    """What stands inside one layer; paths count from the layer.

    Attributes:
        norms: `ln1` and `ln2`, whose output attention (or another mixer) and the MLP receive; `ln1_post` and `ln2_post`
            behind them; `q_norm` and `k_norm` in attention. Path of each that there is.
        heads: `q`, `k`, `v` -> what their projection gives.
        no_heads: why there are none, or not all.
        mlp: `in` and, where it is gated, `gate` -> what the maps into the neurons give; `gate` goes through the
            activation.
        no_mlp: why there are none.
        rotary: queries and keys are rotated between projection and scores.
        by_head: those of `q_norm` and `k_norm` that receive (batch, position, head, width).
    """

    norms: dict[str, str] = field(default_factory=dict)
    heads: dict[str, Projection] = field(default_factory=dict)
    no_heads: str = ""
    mlp: dict[str, Projection] = field(default_factory=dict)
    no_mlp: str = ""
    rotary: bool = False
    by_head: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class ModelParts:
    """What stands inside a model.

    Arguments:
        layers: of each layer.
        embedding_norm: path of the norm behind the token embedding; None: there is none.
        position_table: path of the module that gives an embedding for each position; None: there is none.
        embedding_scale: what token embeddings are multiplied by before positions are added and the layers begin; None:
            they begin with something else.
    """

    layers: list[LayerParts]
    embedding_norm: str | None
    position_table: str | None
    embedding_scale: float | None


def model_parts(model: StandardizedTransformer) -> ModelParts:
    """What stands inside a model; runs it once, on a few tokens.

    Arguments:
        model: the model.
    """
    norm, table = _embedding_norm(model), _position_table(model)
    seen = _Seen(model, [path for path in (norm or model.architecture.embedding, table) if path is not None])
    seen.run()
    layers = [_parts(model, layer, seen) for layer in range(model.num_layers)]
    scale = _embedding_scale(model, seen, norm or model.architecture.embedding, table)
    return ModelParts(layers, norm, table, scale)


def _embedding_norm(model: StandardizedTransformer) -> str | None:
    record = model.architecture
    near = (record.embedding.rpartition(".")[0], record.layers.rpartition(".")[0])
    for path, part in model._module.named_modules():
        if path in (record.final_norm, record.embedding) or path.rpartition(".")[0] not in near:
            continue
        if is_norm(part) and "emb" in path:
            return path
    return None


def _position_table(model: StandardizedTransformer) -> str | None:
    root = model.architecture.layers.rpartition(".")[0]
    for name, part in model._module.get_submodule(root).named_children():
        if name in ("wpe", "embed_positions", "positions_embed") and not isinstance(part, nn.ModuleList):
            return f"{root}.{name}" if root else name
    return None


def _embedding_scale(model: StandardizedTransformer, seen: _Seen, embedding: str, table: str | None) -> float | None:
    """The number by which embeddings are multiplied: one, or what the config says, if that is what is seen."""
    entering, tokens = seen.entering, seen.outside.get(embedding)
    if entering is None or tokens is None or tokens.shape != entering.shape:
        return None
    rest = entering if table is None else entering - seen.outside[table]
    tolerance = max(1e-4, 16 * torch.finfo(model.dtype).eps)
    for scale in (1.0, model.spec.embedding_scale):
        if scale is not None and torch.allclose(tokens * scale, rest, rtol=tolerance, atol=tolerance):
            return scale
    return None


def _parts(model: StandardizedTransformer, layer: int, seen: _Seen) -> LayerParts:
    parts = LayerParts(rotary=_rotates(model, layer))
    whole = model.layer(layer)._module
    sublayers = dict(model.architecture.sublayers(whole))
    mixing = sublayers.get("attention") or sublayers.get("mixer")
    norms = [path for path, part in whole.named_modules() if path and is_norm(part)]
    for name, sublayer in (("ln1", mixing), ("ln2", sublayers.get("mlp"))):
        if sublayer is None:
            continue
        found = next((path for path in norms if seen.hands_on(layer, path, sublayer.module)), None)
        if found is not None and found not in parts.norms.values():  # one norm before both counts as the first
            parts.norms[name] = found
        behind = sublayer.norm_after or sublayer.sources[0]
        if behind in norms and behind not in (sublayer.module, sublayer.projection):
            parts.norms[f"{name}_post"] = behind
    attention = sublayers.get("attention")
    if attention is None:
        parts.no_heads = f"layer {layer} has no attention."
    else:
        for name, pattern in _QK_NORMS.items():
            inside = (path for path in norms if path.startswith(f"{attention.module}."))
            found = next((path for path in inside if pattern.fullmatch(path.rpartition(".")[2])), None)
            if found is not None:
                parts.norms[name] = found
                shape = seen.gave[layer, found].shape if (layer, found) in seen.gave else ()
                if len(shape) == 4 and shape[1] == SMALL:
                    parts.by_head.add(name)
        found_heads = _heads(whole, attention, layer, seen)
        if isinstance(found_heads, str):
            parts.no_heads = found_heads
        else:
            parts.heads = found_heads
    if "mlp" in sublayers:
        parts.mlp, parts.no_mlp = _maps(model, whole, sublayers["mlp"], layer)
    else:
        parts.no_mlp = f"layer {layer} has no MLP."
    return parts


def _rotates(model: StandardizedTransformer, layer: int) -> bool:
    spec = model.spec
    if spec.positional_embedding != "rotary":
        return False
    return spec.rotary_base_by_layer is None or spec.rotary_base_by_layer[layer] is not None


class _Seen:
    """What a small forward pass shows: what modules are given and give, and what attention receives.

    Arguments:
        model: the model.
        outside: paths of modules before the layers whose output is of interest.
    """

    def __init__(self, model: StandardizedTransformer, outside: Sequence[str] = ()) -> None:
        self.model = model
        self.paths = outside
        self.outside: dict[str, Tensor] = {}
        self.entering: Tensor | None = None
        self.given: dict[tuple[int, str], Tensor] = {}
        self.gave: dict[tuple[int, str], Tensor] = {}
        self.received: dict[tuple[int, str], Tensor] = {}

    @torch.no_grad()
    def run(self) -> None:
        """Run it. The user's hooks and edits do not act."""
        model, handles = self.model, []
        visits = []
        for layer in range(model.num_layers):
            whole = model.layer(layer)._module
            inputs = {sublayer.module for _, sublayer in model.architecture.sublayers(whole)}
            for path, part in whole.named_modules():
                if path in inputs:
                    handles.append(passes.before(part, self._before((layer, path))))
                if path and (is_norm(part) or path.rpartition(".")[2] in {*_FUSED, *sum(_SEPARATE, ())}):
                    handles.append(passes.after(part, self._after((layer, path))))
            for kind in ("q", "k", "v"):
                site = Site(kind, layer)
                if why_missing(model, site) is None:
                    visits.append(Visit(str(site), place_of(model, site), self._keep((layer, kind))))
        for path in self.paths:
            part = model._module.get_submodule(path)
            handles.append(passes.after(part, self._outside(path)))
        handles.append(passes.before(model.layer(0)._module, self._enter))
        edits, model._edits = model._edits, []
        try:
            with hooks_aside(model._module):
                run_visiting(model, visits, input_ids=sample_ids(model), use_cache=False)
        finally:
            model._edits = edits
            for handle in handles:
                handle.remove()

    def hands_on(self, layer: int, norm: str, module: str) -> bool:
        """Whether a module receives what a norm gives."""
        given, gave = self.given.get((layer, module)), self.gave.get((layer, norm))
        if given is None or gave is None or given.numel() != gave.numel():
            return False
        return given is gave or given.data_ptr() == gave.data_ptr()

    def _outside(self, path: str) -> Callable[..., None]:
        def keep(_: nn.Module, args: Any, output: Any) -> None:
            self.outside[path] = output.clone()

        return keep

    def _enter(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        self.entering = given.clone()

    def _before(self, key: tuple[int, str]) -> Callable[..., None]:
        def keep(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            given = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(given, Tensor):
                self.given[key] = given

        return keep

    def _after(self, key: tuple[int, str]) -> Callable[..., None]:
        def keep(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.gave[key] = output

        return keep

    def _keep(self, key: tuple[int, str]) -> Callable[[Tensor], None]:
        def keep(value: Tensor) -> None:
            self.received[key] = value.clone()

        return keep


# Queries, keys, values ------------------------------------------------------------------------------------------------


def _heads(whole: nn.Module, attention: Sublayer, layer: int, seen: _Seen) -> dict[str, Projection] | str:
    """The projections of a layer's attention, or why there are none that give heads."""
    received = {kind: value for kind in ("q", "k", "v") if (value := seen.received.get((layer, kind))) is not None}
    inside = {path for path, _ in whole.named_modules() if path.startswith(f"{attention.module}.")}
    by_name = {path.rpartition(".")[2]: path for path in sorted(inside, key=lambda path: -path.count("."))}
    for names in _SEPARATE:
        if set(names) <= by_name.keys():
            paths = [by_name[name] for name in names]
            found = {
                kind: Projection(path, None, _count(seen, layer, kind, path))
                for kind, path in zip(("q", "k", "v"), paths, strict=True)
            }
            wrong = [kind for kind, one in found.items() if one.heads is None or not _gives(seen, layer, kind, one)]
            if not wrong:
                return found
            return f"what {paths[0]} and the like give is no value of a head each ({', '.join(wrong)} differ)."
    fused = next((by_name[name] for name in _FUSED if name in by_name), None)
    if fused is None or (layer, fused) not in seen.gave:
        name = type(whole.get_submodule(attention.module)).__name__
        return f"{name} has no projection of its own to queries, keys and values."
    if "q" not in received or "k" not in received:
        return "its queries and keys cannot be followed from the projection to attention."
    heads, width = received["q"].shape[1], received["q"].shape[3]
    total = seen.gave[layer, fused].shape[-1]
    kv_heads = (total // width - heads) // 2  # attention may receive them repeated (Falcon)
    for columns in _layouts(heads, kv_heads, width, total):
        counts = {"q": heads, "k": kv_heads, "v": kv_heads}
        found = {kind: Projection(fused, columns[kind], counts[kind]) for kind in columns}
        if all(_gives(seen, layer, kind, one) for kind, one in found.items()):
            return found
    return f"the order of heads in {fused} is none that is known."


def _count(seen: _Seen, layer: int, kind: str, path: str) -> int | None:
    """How many heads a projection gives, by the width of what attention receives."""
    gave, received = seen.gave.get((layer, path)), seen.received.get((layer, kind))
    if received is None and kind == "v":
        received = seen.received.get((layer, "k"))
    if gave is None or received is None or gave.shape[-1] % received.shape[1]:
        return None
    return int(received.shape[1])


def _gives(seen: _Seen, layer: int, kind: str, projection: Projection) -> bool:
    """Whether a projection gives what attention receives: values as they are, queries and keys before rotation.

    A norm or a rotation may stand between: then nothing is known but at the first token, which is not rotated. Where a
    norm stands between, what the values show has to do.
    """
    received = seen.received.get((layer, kind))
    if received is None:
        return True
    gave = seen.gave[layer, projection.path]
    assert projection.heads is not None  # it is of heads
    mine = gave if projection.columns is None else gave[..., projection.columns]
    mine = mine.reshape(*received.shape[:1], received.shape[2], projection.heads, -1).transpose(1, 2)
    mine = mine.repeat_interleave(max(1, received.shape[1] // mine.shape[1]), dim=1)
    if mine.shape != received.shape:
        return False
    if kind == "v":
        most = received.abs().max()  # what is beyond may have been clipped (MPT, DBRX)
        return torch.allclose(mine.clamp(-most, most), received, rtol=1e-2, atol=1e-4)
    if (layer, "v") in seen.received:
        return True
    first, other = mine[:, :, 0].flatten().float(), received[:, :, 0].flatten().float()
    return bool(nn.functional.cosine_similarity(first, other, dim=0) > 0.999)


def _layouts(heads: int, kv_heads: int, width: int, total: int) -> Iterator[Mapping[str, Tensor]]:
    """In which orders families put queries, keys and values side by side: which columns each are, by heads."""
    if kv_heads < 1 or heads % kv_heads or total != (heads + 2 * kv_heads) * width:
        return
    columns = torch.arange(total, device="cpu")
    q, k, v = columns.split([heads * width, kv_heads * width, kv_heads * width])
    yield {"q": q, "k": k, "v": v}
    # Each key's queries, it, and its value, side by side (GPT-NeoX, Bloom, Falcon).
    grouped = columns.view(kv_heads, heads // kv_heads + 2, width)
    yield {
        "q": grouped[:, :-2].reshape(-1),
        "k": grouped[:, -2].reshape(-1),
        "v": grouped[:, -1].reshape(-1),
    }
    # CodeGen was trained on four devices, each of which holds queries, values and keys.
    if heads == kv_heads and heads % 4 == 0:
        split = columns.view(4, 3, -1)
        yield {"q": split[:, 0].reshape(-1), "k": split[:, 2].reshape(-1), "v": split[:, 1].reshape(-1)}


# The MLP --------------------------------------------------------------------------------------------------------------


def _maps(
    model: StandardizedTransformer, whole: nn.Module, mlp: Sublayer, layer: int
) -> tuple[dict[str, Projection], str]:
    """The maps into the neurons, and why there are none."""
    projection = None if mlp.projection is None else submodule(whole, mlp.projection)
    if projection is None:
        reason = why_missing(model, Site("mlp_post", layer))
        return {}, reason or f"the MLP of layer {layer} has no single layer of neurons."
    sizes = widths(projection)
    if sizes is None:
        return {}, f"{mlp.projection} does not say how wide its input is."
    if mlp.is_spread:
        return {"in": Projection(mlp.module)}, ""
    holder = mlp.projection.rpartition(".")[0] if mlp.projection is not None else mlp.module
    maps = {
        f"{holder}.{path}": given
        for path, part in whole.get_submodule(holder).named_children()
        if part is not projection and (given := widths(part)) is not None
    }
    plain = [path for path, given in maps.items() if given[1] == sizes[0]]
    fused = [path for path, given in maps.items() if given[1] == 2 * sizes[0]]
    if len(plain) == 1 and not fused:
        return {"in": Projection(plain[0])}, ""
    gates = [path for path in plain if "gate" in path.rpartition(".")[2] or path.endswith((".w1", ".linear_1"))]
    if len(plain) == 2 and len(gates) == 1:
        up = next(path for path in plain if path not in gates)
        return {"gate": Projection(gates[0]), "in": Projection(up)}, ""
    if len(fused) == 1 and not plain:
        halves = torch.arange(2 * sizes[0], device="cpu").chunk(2)
        first = _activates_first(whole.get_submodule(holder), whole.get_submodule(fused[0]), projection)
        if first is not None:
            activated, other = halves if first else (halves[1], halves[0])
            return {"gate": Projection(fused[0], activated), "in": Projection(fused[0], other)}, ""
    return {}, f"{type(whole.get_submodule(holder)).__name__} has maps that are not known: {', '.join(maps)}."


@torch.no_grad()
def _activates_first(mlp: nn.Module, fused: nn.Module, projection: nn.Module) -> bool | None:
    """Whether the first half of a fused map goes through the activation; None: neither does, as far as can be seen."""
    activation = next((one for name in _ACTIVATIONS if callable(one := getattr(mlp, name, None))), None)
    sizes = widths(fused)
    if activation is None or sizes is None:
        return None
    weight = next(fused.parameters())
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 3, sizes[0], generator=generator, dtype=torch.float32, device="cpu").to(weight)
    kept: list[Tensor] = []
    handle = passes.before(projection, lambda _, args, kwargs: kept.append(args[0]))
    try:
        mlp(sample)
    finally:
        handle.remove()
    one, other = fused(sample).chunk(2, dim=-1)
    for first, value in ((True, activation(one) * other), (False, activation(other) * one)):
        if torch.allclose(value, kept[0], rtol=1e-2, atol=1e-3):
            return first
    return None

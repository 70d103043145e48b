"""Takes a residual stream apart: what has been written so far, by which part, and what each adds to a logit.

The residual stream is a sum of what the embedding, every attention, mixer and MLP have added; an attention of what its
heads add and a bias, an MLP of what its neurons add and a bias. Whatever a decomposition leaves out is its remainder,
so the parts of a stack always sum to the stream itself. Elhage et al., "A Mathematical Framework for Transformer
Circuits" (2021).

Only what is cached counts: `run_with_cache(prompts, sites="resid_post.* attn_out.* mlp_out.* embed")`, with `z.*` for
heads and `mlp_post.*` for neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.architectures import vision_layout
from interp.errors import InterpError, nearest
from interp.model.model_spec.lookups import is_linear
from interp.model.places import norm_gain
from interp.model.resolve import head_out_place, norm_behind, place_of, sublayer_of
from interp.model.verdicts import once
from interp.readout import TokenGroups
from interp.readout.linear_tail import Scale, mean_logits, residual_scales, scaled, tail_at
from interp.results import Attribution
from interp.sites import Site

if TYPE_CHECKING:
    import pandas as pd

    from interp.activations.activation_cache import ActivationCache
    from interp.model import StandardizedTransformer

__all__ = [
    "Parts",
    "ResidualStack",
    "TokenTargets",
    "accumulated_residual",
    "decomposed_residual",
    "logit_attribution",
]

Parts = str | Sequence[str]
"""`layers`, `heads`, `neurons`, or a list of `embed`, `attention`, `mixer`, `mlp`, `heads`, `neurons`."""
Token = int | str
TokenTargets = Token | Sequence[Token | Sequence[int]] | Tensor | Mapping[str, Any]
"""A token for all examples, one an example, or name -> either."""

_KINDS = {"attention": "attn_out", "mixer": "mixer_out", "mlp": "mlp_out"}
_PARTS = ("embed", *_KINDS, "heads", "neurons")
_ROWS = 1024  # neurons whose directions are computed at once
REMAINDER = "remainder"


@dataclass(frozen=True, eq=False, repr=False)
class ResidualStack:
    """Parts of a residual stream, or streams one after the other.

    Attributes:
        labels: what each is: a site (`attn_out.3`, `z.3.h0`, `mlp_post.3.n17`), `embed`, `remainder`.
        values: (part, example, position, hidden); NaN where an example has no such position.
    """

    labels: tuple[str, ...]
    values: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, label: str) -> Tensor:
        """One part, (example, position, hidden)."""
        if label not in self.labels:
            raise InterpError(f"the stack has no {label!r}.{nearest(label, self.labels)}")
        return self.values[self.labels.index(label)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.labels[0]} ... {self.labels[-1]}; {tuple(self.values.shape)})"

    def to_frame(self) -> pd.DataFrame:
        """A row for each part, example and place along the position axis: the Euclidean `norm` of what it is."""
        import pandas as pd

        counts = [self.labels, range(self.values.shape[1]), range(self.values.shape[2])]
        frame = pd.MultiIndex.from_product(counts, names=["part", "example", "position"]).to_frame(index=False)
        frame["norm"] = self.values.float().norm(dim=-1).flatten().cpu().numpy()
        return frame.dropna(ignore_index=True)


@torch.no_grad()
def accumulated_residual(
    cache: ActivationCache, layer: int | None, *, include_middle: bool, apply_norm: bool
) -> ResidualStack:
    """See `ActivationCache.accumulated_residual`."""
    model = cache.model
    labels, streams = [], []
    end = _end(cache, layer)
    for index in range(end):
        labels.append(f"resid_pre.{index}")
        streams.append(_entering(cache, index))
        if include_middle and model.has(Site("resid_mid", index)):
            labels.append(f"resid_mid.{index}")
            streams.append(cache[Site("resid_mid", index)])
    labels.append(f"resid_pre.{end}" if end < model.num_layers else f"resid_post.{end - 1}")
    streams.append(_entering(cache, end))
    values = torch.stack([stream.to(streams[0]) for stream in streams])
    if apply_norm:
        final = _entering(cache, model.num_layers)
        flat = final.flatten(0, 1)
        there = ~flat.isnan().any(-1)
        cells = values.flatten(1, 2)  # (part, cell, hidden)
        groups = TokenGroups.pad([[[0]]] * int(there.sum()), model.vocab_size)
        norm, _ = tail_at(model, flat[there], groups)
        read = torch.full_like(cells, torch.nan, dtype=torch.float32)
        read[:, there] = (norm(cells[:, there].to(norm.gain)) + norm.bias).to(read)
        values = read.view(values.shape).to(values.dtype)
    return ResidualStack(tuple(labels), values)


@torch.no_grad()
def decomposed_residual(cache: ActivationCache, layer: int | None, parts: Parts) -> ResidualStack:
    """See `ActivationCache.decomposed_residual`."""
    end = _end(cache, layer)
    stream = _entering(cache, end)
    labels, values = [], []
    for part in _parts(cache, end, _chosen(parts)):
        labels += part.labels
        values.append(part.values().to(stream))
    stack = torch.cat(values) if values else stream.new_zeros(0, *stream.shape)
    rest = stream - stack.sum(0)
    return ResidualStack((*labels, REMAINDER), torch.cat([stack, rest[None]]))


@torch.no_grad()
def logit_attribution(
    cache: ActivationCache, targets: TokenTargets, parts: Parts, *, stack: ResidualStack | None
) -> Attribution:
    """See `ActivationCache.logit_attribution`."""
    model = cache.model
    names, ids = _token_groups(cache, targets)
    final = _entering(cache, model.num_layers)
    there = ~final.isnan().any(-1)  # (example, position)
    example, slot = (index.cpu() for index in there.nonzero(as_tuple=True))
    groups = TokenGroups.pad(ids, model.vocab_size).rows(example)
    hidden = final[there]
    norm, rows = tail_at(model, hidden, groups)
    direction = norm.gain[:, None] * rows.weight.to(norm.gain.device)  # (cell, group, hidden)
    if norm.centred:
        direction = direction - direction.mean(-1, keepdim=True)
    labels: list[str] = []
    found: list[Tensor] = []
    if stack is not None:
        if stack.values.shape[1:] != final.shape:
            raise InterpError(
                f"stack: expected (part, {', '.join(map(str, final.shape))}), got {tuple(stack.values.shape)}."
            )
        labels += stack.labels
        cells = stack.values[:, there.to(stack.values.device)].to(direction)
        found.append(torch.einsum("sch,cgh->csg", cells, direction))
    else:
        for part in _parts(cache, model.num_layers, _chosen(parts)):
            labels += part.labels
            found.append(part.along(there, direction).cpu())
    contribution = torch.cat([one.cpu() for one in found], dim=1).float()
    fixed = (rows.bias + rows.weight @ norm.bias.to(rows.weight.device)).float().cpu()  # (cell, group)
    logit = mean_logits(model, hidden, groups).float().cpu()
    arrays = {"contribution": contribution, "logit": logit, "remainder": logit - contribution.sum(1) - fixed}
    examples, slots = final.shape[:2]
    placed: dict[str, Any] = {}
    for name, values in arrays.items():
        whole = np.full((examples, slots, *values.shape[1:]), np.nan, dtype=np.float32)
        whole[example, slot] = values.numpy()
        placed[name] = whole if slots > 1 else whole[:, 0]
    constant = np.full((examples, len(names)), np.nan, dtype=np.float32)
    constant[example] = fixed.numpy()
    leading: dict[str, Any] = {"example": range(examples)}
    if slots > 1:
        leading["position"] = list(cache.labels)
    return Attribution({**leading, "site": labels}, constant=constant, group_names=names, **placed)


# Parts ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """What one sublayer adds, in one piece or in several.

    Arguments:
        labels: of the pieces.
        values: gives (piece, example, position, hidden).
        along: given which cells (example, position) count, and directions (cell, group, hidden), gives what the pieces
            have along them: (cell, piece, group).
    """

    labels: list[str]
    values: Callable[[], Tensor]
    along: Callable[[Tensor, Tensor], Tensor]

    @classmethod
    def of(cls, labels: list[str], values: Callable[[], Tensor]) -> _Part:
        """A part that is small enough to be there as it is."""

        def along(there: Tensor, direction: Tensor) -> Tensor:
            pieces = values()
            return torch.einsum("sch,cgh->csg", pieces[:, there.to(pieces.device)].to(direction), direction)

        return cls(labels, values, along)


def _chosen(parts: Parts) -> tuple[str, ...]:
    if isinstance(parts, str):
        parts = {"layers": ("embed", *_KINDS)}.get(parts, (parts,))
    for part in parts:
        if part not in _PARTS:
            raise InterpError(f"parts: unknown {part!r}.{nearest(part, ('layers', *_PARTS))}")
    for whole, pieces in (("attention", "heads"), ("mlp", "neurons")):
        if whole in parts and pieces in parts:
            raise InterpError(f"parts: {pieces} are parts of {whole}. Ask for one or the other.")
    return tuple(parts)


def _parts(cache: ActivationCache, end: int, chosen: Sequence[str]) -> Iterator[_Part]:
    model = cache.model
    scales = residual_scales(model, end)
    if "embed" in chosen:
        yield _Part.of(["embed"], _scaled_by(lambda: _entering(cache, 0)[None], scales[-1, "embed"]))
    for layer in range(end):
        for role, _ in model.architecture.sublayers(model.layer(layer)._module):
            scale = scales[layer, role]
            if role in chosen:
                site = Site(_KINDS[role], layer)
                yield _Part.of([str(site)], _scaled_by(lambda site=site: cache[site][None], scale))  # type: ignore[misc]
            if role == "attention" and "heads" in chosen:
                yield _heads(cache, layer, scale)
            if role == "mlp" and "neurons" in chosen:
                yield _neurons(cache, layer, scale)


def _scaled_by(values: Callable[[], Tensor], scale: Scale) -> Callable[[], Tensor]:
    return lambda: scaled(values(), scale)


def _heads(cache: ActivationCache, layer: int, scale: Scale) -> _Part:
    model, site = cache.model, Site("head_out", layer)
    place = head_out_place(model, layer, str(site))
    place_of(model, site)  # raises where heads cannot be told apart

    def values() -> Tensor:
        if site in cache:
            heads = cache[site]
        else:
            z = cache[Site("z", layer)]
            heads = place.heads(z.to(model.device, model.dtype)).to(z)
        return scaled(heads.permute(2, 0, 1, 3), scale)

    return _Part.of([f"{site}.h{head}" for head in range(place.z.num_heads)], values)


def _neurons(cache: ActivationCache, layer: int, scale: Scale) -> _Part:
    """What each neuron adds: its activation times its row of the output projection, on the way to the stream."""
    model, site = cache.model, Site("mlp_post", layer)
    place_of(model, site)  # raises where there are no neurons
    sublayer = sublayer_of(model, "mlp", layer)
    assert sublayer is not None
    envoy = model.layer(layer)
    projection, norm = envoy.get(str(sublayer.projection)), norm_behind(envoy, sublayer)
    module = envoy._module.get_submodule(str(sublayer.projection))
    if not once(
        model, f"linear MLP of layer {layer}", lambda: is_linear(module, projection, model.dtype, model.device)
    ):
        raise InterpError(
            f"neurons of layer {layer}: its output projection ({type(module).__name__}) is not linear, so what neurons "
            "add one by one is not what they add together. Use mlp_out."
        )
    own: Scale = 1.0 if sublayer.scale is None else getattr(envoy._module, sublayer.scale)
    activations = cache[site]  # (example, position, neuron)

    def directions() -> Iterator[tuple[int, Tensor]]:
        """(neuron, hidden), of some neurons at a time."""
        width = activations.shape[-1]
        nothing = torch.zeros(1, 1, width, device=model.device, dtype=model.dtype)
        bias = projection(nothing)
        for start in range(0, width, _ROWS):
            rows = min(_ROWS, width - start)
            ones = nothing.expand(1, rows, width).clone()
            ones[0, range(rows), range(start, start + rows)] = 1
            yield start, scaled(scaled((projection(ones) - bias)[0], own), scale)

    def gain() -> Tensor | None:
        """(example, position, hidden), of the norm between projection and stream."""
        return None if norm is None else norm_gain(norm, projection(activations.to(model.device, model.dtype)))

    def values() -> Tensor:
        weight = torch.cat([rows for _, rows in directions()]).to(activations)
        pieces = activations.permute(2, 0, 1)[..., None] * weight[:, None, None]
        multiplied = gain()
        return pieces if multiplied is None else pieces * multiplied.to(pieces)

    def along(there: Tensor, direction: Tensor) -> Tensor:
        multiplied = gain()
        if multiplied is not None:
            direction = direction * multiplied[there.to(multiplied.device)].to(direction)[:, None]
        cells = activations[there.to(activations.device)].to(direction)  # (cell, neuron)
        read = [torch.einsum("cgh,nh->cng", direction, rows.to(direction)) for _, rows in directions()]
        return torch.cat(read, dim=1) * cells[..., None]

    return _Part([f"{site}.n{neuron}" for neuron in range(activations.shape[-1])], values, along)


# What is asked for ----------------------------------------------------------------------------------------------------


def _end(cache: ActivationCache, layer: int | None) -> int:
    layers = cache.about.num_layers
    if layer is None:
        return layers
    if not -layers <= layer <= layers:
        raise InterpError(f"layer: expected one of the model, 0 to {layers - 1}, or None for the last, got {layer}.")
    return layer + layers if layer < 0 else layer


def _entering(cache: ActivationCache, layer: int) -> Tensor:
    """The residual stream that enters a layer, by whichever name it is cached."""
    names = [Site("resid_post", layer - 1)] if layer else [Site("embed")]
    own = [Site("resid_pre", layer)] if layer < cache.about.num_layers else []
    layout = vision_layout(cache.model._module.config)
    # Where a vision tower adds to the stream between layers, what leaves one is not what enters the next.
    names = own if own and layer and layout is not None and layout.between_layers else names + own
    return cache[next((site for site in names if site in cache), names[-1])]


def _token_groups(cache: ActivationCache, targets: TokenTargets) -> tuple[tuple[str, ...], list[list[list[int]]]]:
    """Names of the groups; per example, per group: token ids."""
    model, examples = cache.model, len(cache.positions)
    named = targets if isinstance(targets, Mapping) else {"target": targets}
    if not named:
        raise InterpError("targets: expected at least one token, e.g. targets=' Paris'.")
    columns = []
    for name, given in named.items():
        plain = given.tolist() if isinstance(given, Tensor) else given
        each = [plain] * examples if isinstance(plain, int | str) else list(plain)
        if len(each) != examples:
            raise InterpError(
                f"targets {name!r}: expected a token, or one for each of {examples} examples, got {each}."
            )
        columns.append([[_token_id(model, one)] if isinstance(one, int | str) else list(one) for one in each])
    return tuple(map(str, named)), [list(row) for row in zip(*columns, strict=True)]


def _token_id(model: StandardizedTransformer, token: Token) -> int:
    if isinstance(token, int):
        return token
    ids = model.tokenizer(token, add_special_tokens=False)["input_ids"]
    assert isinstance(ids, list)
    if len(ids) != 1:
        shown = [model.tokenizer.decode([one]) for one in ids]
        raise InterpError(f"targets: expected a text of one token, got {token!r}, which is {len(ids)}: {shown}.")
    return int(ids[0])

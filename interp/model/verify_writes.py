"""Proves that an edit at each kind of site changes the logits.

The edits of all kinds run as rows of one batch, each in the middle of the layers that have the kind. An edit may be
without effect by right: weights are zero where a sublayer was pruned or ablated, or where a residual branch begins at
zero. Then other layers are tried, outwards from the middle; where none can tell, the proof is left undecided. What
tells an edit that is without effect by right from one that is lost is a trial through sites that are proved already: a
sublayer that gives the same when the residual stream before it is another one hands nothing on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.sites import LAYER_KINDS, Site

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer
    from interp.model.verify import ProofTable

__all__ = ["another", "part_of", "prove_writes"]

_ATTENTION_KINDS = ("q", "k", "v", "scores", "pattern")
# Kinds inside a sublayer -> what the sublayer adds.
_INSIDE = {
    **dict.fromkeys(("attn_in", *_ATTENTION_KINDS, "z", "head_out"), "attn_out"),
    "mixer_in": "mixer_out",
    "mlp_in": "mlp_out",
    "mlp_post": "mlp_out",
}
_BEFORE_PATTERN = ("q", "k", "scores")


def part_of(kind: str) -> str | None:
    """The part of a layer that a kind of site belongs to: `attention`, `mixer`, `mlp`; None: the residual stream."""
    return {"attn_out": "attention", "mixer_out": "mixer", "mlp_out": "mlp"}.get(_INSIDE.get(kind, kind))


def prove_writes(
    model: StandardizedTransformer,
    input_ids: Tensor,
    table: ProofTable,
    *,
    attention: bool,
    without: Collection[str] = (),
) -> None:
    """Put what an edit at each kind of site does to the logits into a table of proofs.

    Arguments:
        model: the model; the identities of its sites hold.
        input_ids: (1, position), a prompt.
        table: where the proofs go.
        attention: also q, k, v, scores and pattern.
        without: parts of layers that are not to be checked.
    """
    kinds = [
        "embed",
        *(kind for kind in LAYER_KINDS if attention or kind not in _ATTENTION_KINDS),
        "final_norm",
        "logits",
    ]
    left = {kind: sites for kind in kinds if part_of(kind) not in without and (sites := _sites(model, kind))}
    first = True
    while left:
        tried = [sites.pop(0) for sites in left.values()]
        before, edited = _edit(model, input_ids, tried, table if first else None)
        first = False
        for site, after in zip(tried, edited, strict=True):
            why = (
                None
                if table.moved(site.kind, site.layer or 0, before, after)
                else _why_by_right(model, input_ids, site)
            )
            if why is None:  # it moved them, or it is lost
                del left[site.kind]
            elif not left[site.kind]:
                table.undecided(site.kind, f"in every layer {why}" if site.kind in _INSIDE else why)
                del left[site.kind]


def _sites(model: StandardizedTransformer, kind: str) -> list[Site]:
    """The sites of a kind, from the middle of the layers that have it outwards."""
    if kind not in LAYER_KINDS:
        return [Site(kind)] if model.has(Site(kind)) else []
    there = [Site(kind, layer) for layer in range(model.num_layers) if model.has(Site(kind, layer))]
    return [there[at] for at in sorted(range(len(there)), key=lambda at: abs(at - len(there) // 2))]


def _edit(
    model: StandardizedTransformer, input_ids: Tensor, sites: Sequence[Site], table: ProofTable | None
) -> tuple[Tensor, list[Tensor]]:
    """The logits as they are, and those after an edit at each site; by the way, the norm that `final_norm` names."""
    logits: list[Tensor] = []
    ends: list[Tensor] = []
    last = model.num_layers - 1
    with model.trace(use_cache=False) as tracer:
        with tracer.invoke(input_ids=input_ids):
            if table is not None and model.architecture.final_norm is not None:
                ends.append(model.read(f"resid_post.{last}").clone())
                ends.append(model.read("final_norm").clone())
            logits.append(model.logits.clone())
        for site in sites:
            with tracer.invoke(input_ids=input_ids):
                live = model.read(site)
                model.write(site, _edited(site, live))
                logits.append(model.logits.clone())
    if table is not None and ends:
        normed = model.get(model.tail.paths[0])._module(ends[0].to(model.dtype))
        table.compare("final_norm == norm of resid_post", "readout", last, [normed], ends[1])
    return logits[0], logits[1:]


def _edited(site: Site, live: Tensor) -> Tensor:
    """Another value of about the same size."""
    if site.kind == "scores":
        return live * 0.5  # where they are masked they are nearly infinite, and have to stay so
    return live + another(live)


def _why_by_right(model: StandardizedTransformer, input_ids: Tensor, site: Site) -> str | None:
    """Why an edit that did not change the logits need not have; None where it should have."""
    first, second = model.readout(another(torch.ones(2, 1, model.hidden_size, dtype=model.dtype, device=model.device)))
    if torch.equal(first, second):
        return "the head gives the same logits whatever it receives"
    added = _INSIDE.get(site.kind)
    if added is None or site.layer is None:
        return None
    watched = [Site(added, site.layer)]
    if site.kind in _BEFORE_PATTERN:
        watched.insert(0, Site("pattern", site.layer))
    kept: list[list[Tensor]] = []
    with model.trace(use_cache=False) as tracer:
        for changed in (False, True):
            with tracer.invoke(input_ids=input_ids):
                stream = model.read(Site("resid_pre", site.layer))
                if changed:
                    model.write(Site("resid_pre", site.layer), another(stream))
                kept.append([model.read(place).clone() for place in watched])
    same = [torch.equal(before, after) for before, after in zip(*kept, strict=True)]
    if same[-1]:
        return f"{added} is the same whatever enters the layer (weights of zero?)"
    if same[0]:
        return "the attention pattern is the same whatever enters the layer (queries or keys of zero?)"
    before, after = _added(model, input_ids, site, watched[-1])
    if not torch.equal(before, after):  # the edit arrives: what becomes of it is proved by edits of what is added
        return f"it changes {added} by less than the logits' own roundings show"
    return None


def _added(model: StandardizedTransformer, input_ids: Tensor, site: Site, added: Site) -> list[Tensor]:
    """What a sublayer adds, as it is and after an edit inside it."""
    kept: list[Tensor] = []
    with model.trace(use_cache=False) as tracer:
        for changed in (False, True):
            with tracer.invoke(input_ids=input_ids):
                if changed:
                    live = model.read(site)
                    model.write(site, _edited(site, live))
                kept.append(model.read(added).clone())
    return kept


def another(live: Tensor) -> Tensor:
    """Random numbers of the size of a tensor's, the same at every call."""
    noise = torch.randn(live.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    # Logits of rows of padding may be minus infinity, those of tokens that are never said the lowest number.
    finite = live[live.abs() < torch.finfo(live.dtype).max].float()
    size = float(finite.abs().mean()) if bool(finite.any()) else 1.0
    return (noise * size).to(live)

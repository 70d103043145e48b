"""Runs one forward pass of a batch and reads sites at some of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp import passes
from interp.errors import InterpError
from interp.forward.batch import Feed
from interp.forward.last_layer import LastLayer, last_layer_fits
from interp.forward.layers import is_causal
from interp.model.places import HeadOutPlace
from interp.model.resolve import place_of
from interp.sites import ATTENTION_KINDS, MAP_KINDS, Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["read_places", "read_tokens"]

WORTH = 64  # tokens that a layer is spared, for which it is called twice more


def read_tokens(
    model: StandardizedTransformer,
    feed: Feed,
    sites: Sequence[Site],
    rows: Tensor,
    columns: Tensor,
) -> list[Tensor]:
    """Run a batch as far as needed, and read sites at some tokens.

    Where the last site is the end of a layer, that layer is run at these tokens alone, if they are few.

    Arguments:
        model: the model.
        feed: the batch.
        sites: in the order of the forward pass.
        rows, columns: which prompt each token is of, and its place in it, each (entry,).

    Returns:
        Of each site what `read_places` gives.
    """
    layer = None if feed.sees else _cut_short(model, sites, feed, feed.inputs["input_ids"].numel() - len(rows))
    if layer is None:
        return _read(model, feed, sites, rows, columns)

    def short(rows: Tensor, columns: Tensor) -> list[Tensor]:
        return _read_short(model, feed, sites, rows, columns)

    def whole(rows: Tensor, columns: Tensor) -> list[Tensor]:
        return _read(model, feed, sites, rows, columns)

    fits = last_layer_fits(model, layer, feed, lambda *at: short(*at)[-1], lambda *at: whole(*at)[-1])
    return short(rows, columns) if fits else whole(rows, columns)


def _cut_short(model: StandardizedTransformer, sites: Sequence[Site], feed: Feed, saved: int) -> int | None:
    """The last layer that is needed, where it can be run at a few tokens alone, and that pays.

    Arguments:
        model: the model.
        sites: in the order of the forward pass.
        feed: the batch.
        saved: tokens that it then need not run at.
    """
    last = sites[-1]
    if last.kind != "resid_post" or saved < WORTH or model.config._attn_implementation not in ("sdpa", "eager"):
        return None
    entering = model.in_order([*sites[:-1], Site("resid_pre", last.layer)])[-1]
    if entering != Site("resid_pre", last.layer) or not is_causal(
        model, feed.keys
    ):  # something else of this layer is read
        return None
    return last.layer


def _read(
    model: StandardizedTransformer, feed: Feed, sites: Sequence[Site], rows: Tensor, columns: Tensor
) -> list[Tensor]:
    gathered: list[Tensor] = []
    rows, columns = feed.places(rows, columns)
    with feed.reading(model), model.trace(**feed.inputs) as tracer:
        gathered += read_places(model, sites, rows, columns, feed.inputs.get("attention_mask"))
        tracer.stop()
    return gathered


def read_places(
    model: StandardizedTransformer, sites: Sequence[Site], rows: Tensor, columns: Tensor, mask: Tensor | None
) -> list[Tensor]:
    """Read sites at some tokens, inside a trace.

    Arguments:
        model: the model.
        sites: in the order of the forward pass.
        rows, columns: where each token is in what is fed, each (entry,).
        mask: the attention mask that is fed, (row, column), 0 at padding; None: there is none on the left.

    Returns:
        Of each site a copy: (entry, hidden), or with heads (entry, head, head_dim or hidden); of `scores` and `pattern`
        (entry, head, key), keys from the prompt's own first token. One head of a site is without the head axis.
    """
    gathered: list[Tensor] = []
    whole: tuple[Site, Tensor] | None = None
    for site in sites:
        every = replace(site, head=None)
        if whole is None or whole[0] != every:  # one reading for all heads of a layer
            whole = every, _at(model, every, rows, columns, mask)
        values = whole[1]
        if site.head is not None and site.head >= values.shape[1]:
            raise InterpError(f"{site}: this layer has {values.shape[1]} heads, from 0.")
        gathered.append(values if site.head is None else values[:, site.head])
    return gathered


def _at(model: StandardizedTransformer, site: Site, rows: Tensor, columns: Tensor, mask: Tensor | None) -> Tensor:
    """A copy of what a site holds at entries, with all heads."""
    if site.kind == "head_out":
        return _heads_at(model, site, rows, columns)
    values = model.read(site).detach()
    rows, columns = rows.to(values.device), columns.to(values.device)
    if site.kind not in ATTENTION_KINDS:
        return values[rows, columns]  # (entry, ...) of (batch, position, ...)
    values = values[rows, :, columns]  # (entry, head, ...) of (batch, head, position, ...)
    if site.kind not in MAP_KINDS or mask is None:
        return values
    before = mask.to(values.device).argmax(dim=1)[rows]  # columns of padding on the left
    keys = torch.arange(values.shape[-1], device=values.device)
    own = (before[:, None] + keys).clamp(max=values.shape[-1] - 1)  # (entry, key)
    return values.gather(-1, own[:, None].expand_as(values))


def _heads_at(model: StandardizedTransformer, site: Site, rows: Tensor, columns: Tensor) -> Tensor:
    """(entry, head, hidden), what each head adds; projected at the entries alone."""
    place = place_of(model, site)
    assert isinstance(place, HeadOutPlace)
    z = place.z.read().detach()
    return place.heads(z[rows.to(z.device), columns.to(z.device)][None])[0]


def _read_short(
    model: StandardizedTransformer,
    feed: Feed,
    sites: Sequence[Site],
    rows: Tensor,
    columns: Tensor,
) -> list[Tensor]:
    """The same, with the last layer at these tokens alone."""
    assert sites[-1].layer is not None
    last = LastLayer(model, sites[-1].layer)
    hook = passes.before(model.layer(last.layer)._module, last.take)
    try:
        entering = Site("resid_pre", last.layer)
        read = _read(model, feed, [*(site for site in sites[:-1] if site != entering), entering], rows, columns)
    finally:
        hook.remove()
    if sites[-2:-1] != [entering]:
        read.pop()
    return [*read, last.at(rows, columns, feed)]

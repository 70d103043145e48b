"""One forward pass of a batch, and what sites hold at some of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from interp import passes
from interp.forward.causal import is_causal
from interp.forward.feeding import Feed
from interp.forward.last_layer import LastLayer, last_layer_fits
from interp.model.layout import place_of
from interp.model.places import HeadOutPlace
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["read_tokens"]

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
        (entry, hidden) of each site.
    """
    layer = _cut_short(model, sites, feed, feed.inputs["input_ids"].numel() - len(rows))
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
    heads: dict[int, Tensor] = {}
    rows, columns = feed.places(rows, columns)
    with feed.reading(model), model.trace(**feed.inputs) as tracer:
        for site in sites:
            if site.kind != "head_out":
                gathered.append(_at(model.read(site), rows, columns))
                continue
            assert site.layer is not None
            if site.layer not in heads:  # one reading for all heads of a layer
                heads = {site.layer: _heads_at(model, site.layer, rows, columns)}
            gathered.append(heads[site.layer][:, site.head])
        tracer.stop()
    return gathered


def _at(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A copy of (batch, length, ...) at entries: (entry, ...)."""
    return values.detach()[rows.to(values.device), columns.to(values.device)]


def _heads_at(model: StandardizedTransformer, layer: int, rows: Tensor, columns: Tensor) -> Tensor:
    """(entry, head, hidden), what each head adds; projected at the entries alone."""
    place = place_of(model, Site("head_out", layer))
    assert isinstance(place, HeadOutPlace)
    return place.heads(_at(place.z.read(), rows, columns)[None])[0]


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

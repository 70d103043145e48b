"""Which sites of a model a caller names: exact names, `*` for the layers that have the site, `all`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError
from interp.model.resolve import place_of, why_missing
from interp.sites import KINDS, LAYER_KINDS, Site, Spelling, parse_sites

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["COSTLY", "Sites", "all_sites", "sites_of"]

Sites = Spelling | Sequence[Spelling]

COSTLY = ("q", "k", "v", "scores", "pattern", "head_out", "logits")
"""Kinds that are cached by name or by `all` alone: maps make a layer compute its attention step by step, heads are a
product more, logits are the output itself."""


def all_sites(model: StandardizedTransformer, kinds: Sequence[str] = KINDS) -> list[Site]:
    """The sites of some kinds that a model has, all heads of a layer as one, in the order of the forward pass.

    Arguments:
        model: the model.
        kinds: of `interp.sites.KINDS`.
    """
    every = [
        Site(kind, layer) if kind in LAYER_KINDS else Site(kind)
        for kind in kinds
        for layer in (range(model.num_layers) if kind in LAYER_KINDS else (None,))
    ]
    return model.in_order([site for site in every if why_missing(model, site) is None])


def sites_of(model: StandardizedTransformer, sites: Sites | None) -> list[Site]:
    """The sites of a model that a spelling names, in the order of the forward pass.

    Arguments:
        model: the model.
        sites: in any spelling, one or several; `*` names those layers that have the site. `all`: every site. None:
            all but `q`, `k`, `v`, `scores`, `pattern`, `head_out` and `logits`.

    Raises:
        InterpError: a name that is none, with the nearest ones, or a site that the model does not have.
    """
    if sites is None:
        return all_sites(model, [kind for kind in KINDS if kind not in COSTLY])
    if sites == "all":
        return all_sites(model)
    shorthand = isinstance(sites, tuple) and any(isinstance(item, int) for item in sites)
    several: list[Any] = [sites] if isinstance(sites, str | Site) or shorthand else list(sites)
    words = [word for given in several for word in (given.split() if isinstance(given, str) else [given])]
    found: set[Site] = set()
    for word in words:
        named = parse_sites(word, model.num_layers, model.num_heads, model.num_kv_heads)
        there = [site for site in named if why_missing(model, site) is None]
        if not there or (len(there) < len(named) and not (isinstance(word, str) and "*" in word)):
            place_of(model, next(site for site in named if site not in there))  # raises, and says why
        found.update(there)
    if not found:
        raise InterpError("sites: expected at least one, e.g. resid_post.*, got none.")
    return model.in_order(list(found))

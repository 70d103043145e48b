"""The shapes of a model's sites, and values brought into the one layout in which entries are changed.

A value broadcasts to the shape of its site (`interp.sites.SHAPES`), where positions are those that are written. Here it
is (example, position, [head,] number), whatever the order at the site; an axis has size 1 where it is one for all.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp.errors import InterpError
from interp.model.resolve import place_of
from interp.model.verdicts import sample_ids
from interp.model.visits import Visit, run_visiting
from interp.sites import ATTENTION_KINDS, HEAD_KINDS, MAP_KINDS, Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["SiteShape", "as_entries", "embedding_std", "layout", "of_whole_layout", "site_shapes"]


@dataclass(frozen=True)
class SiteShape:
    """The sizes of a site that do not depend on prompts.

    Arguments:
        heads: on its head axis; None: it has none.
        width: numbers at a token (and head); None: as many as there are keys (`scores`, `pattern`).
    """

    heads: int | None
    width: int | None


_measured: weakref.WeakKeyDictionary[nn.Module, dict[Site, SiteShape]] = weakref.WeakKeyDictionary()
_embedding_stds: weakref.WeakKeyDictionary[nn.Module, float] = weakref.WeakKeyDictionary()


@torch.no_grad()
def site_shapes(model: StandardizedTransformer, sites: Iterable[Site]) -> dict[Site, SiteShape]:
    """The shapes of sites with all their heads. Those with heads are measured on two tokens, once for each model.

    Arguments:
        model: the model.
        sites: without heads.
    """
    known = _measured.setdefault(model._module, {})
    wanted = list(dict.fromkeys(sites))
    visits = []
    for site in wanted:
        if site in known:
            continue
        if site.kind not in HEAD_KINDS:
            known[site] = SiteShape(None, model.width(site))
            continue

        def measure(value: Tensor, site: Site = site) -> None:
            heads, width = value.shape[1 if site.kind in ATTENTION_KINDS else 2], value.shape[3]
            known[site] = SiteShape(heads, None if site.kind in MAP_KINDS else width)

        visits.append(Visit(str(site), place_of(model, site), measure))
    if visits:
        run_visiting(model, visits, stop=True, input_ids=sample_ids(model, rows=1, length=2))
    return {site: known[site] for site in wanted}


@torch.no_grad()
def embedding_std(model: StandardizedTransformer) -> float:
    """The standard deviation of all numbers of the model's token embeddings, as its embedding module gives them."""
    module = model.get(model.architecture.embedding)._module
    if module not in _embedding_stds:
        count, total, squares = 0, 0.0, 0.0
        for ids in torch.arange(model.vocab_size, device=model.device).split(4096):
            values = module(ids[None]).double()
            count, total = count + values.numel(), total + float(values.sum())
            squares += float(values.square().sum())
        _embedding_stds[module] = max(squares / count - (total / count) ** 2, 0.0) ** 0.5
    return _embedding_stds[module]


def layout(kind: str, *, has_heads: bool) -> tuple[str, ...]:
    """The axes of a value, as the site has them: `example`, `head` if it has any, `position`, and its numbers."""
    if not has_heads:
        return ("example", "position", "number")
    inside = ("head", "position") if kind in ATTENTION_KINDS else ("position", "head")
    return ("example", *inside, "number")


def of_whole_layout(kind: str, value: Tensor, *, has_heads: bool) -> Tensor:
    """(example, position, [head,] number) from a tensor with all axes of its site."""
    axes = layout(kind, has_heads=has_heads)
    return value.transpose(1, 2) if has_heads and axes[1] == "head" else value


def as_entries(
    value: Tensor,
    kind: str,
    heads: int | None,
    width: int | None,
    counts: Sequence[int],
    lengths: Sequence[int],
    name: str,
) -> Tensor:
    """A user's tensor as (example, position, [head,] number).

    Arguments:
        value: what broadcasts to the shape of the site.
        kind: of the site.
        heads: how many are written; None: the site has no head axis, or names one head.
        width: numbers at a token and head; None: keys.
        counts: how many positions of each example are written.
        lengths: tokens of each example.
        name: what is written where, for messages.

    Raises:
        InterpError: it does not fit, or holds NaN or infinity where it is used.
    """
    axes = layout(kind, has_heads=heads is not None)
    sizes = {
        "example": len(counts),
        "position": max(counts, default=0),
        "head": heads,
        "number": max(lengths) if width is None else width,
    }
    fits = value.dim() <= len(axes)
    shape = (1,) * (len(axes) - value.dim()) + tuple(value.shape)
    if not fits or any(size not in (1, sizes[axis]) for axis, size in zip(axes, shape, strict=False)):
        words = {"number": "key" if width is None else "number"}
        wanted = ", ".join(f"{words.get(axis, axis)} {sizes[axis]}" for axis in axes)
        raise InterpError(
            f"{name}: a value of shape {tuple(value.shape)} does not fit; expected what broadcasts to ({wanted})."
        )
    entries = of_whole_layout(kind, value.reshape(shape), has_heads=heads is not None)
    for example, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        used = entries[example if len(entries) > 1 else 0, :count]
        used = used[..., :length] if width is None else used
        if not bool(used.isfinite().all()):
            raise InterpError(f"{name}: the value holds NaN or infinity at example {example}.")
        if len(entries) == 1 and entries.shape[1] == 1 and width is not None:
            break  # one for all
    return entries

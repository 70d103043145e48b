"""Cells of a grid of patches: what one run writes, the values that are written, and the plain way to run them.

The plain way is a forward pass of whole prompts for each cell, many cells in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from interp.matmul import faster_products
from interp.model.image_inputs import inputs_of_prompts
from interp.model.places import HeadOutPlace, ZPlace
from interp.model.resolve import place_of
from interp.model.visits import Visit, run_visiting
from interp.patching.changed_attention import heads_in
from interp.prompts import Media
from interp.sites import ATTENTION_KINDS, Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Cell", "Positions", "Written", "by_position", "heads_of", "run_cells", "run_whole", "values_at"]

Positions = Sequence[tuple[int, ...] | None]
"""For each place of a grid the tokens that are written at once, ascending; None: the prompt has no such place."""


class Cell(NamedTuple):
    """What one run writes.

    Arguments:
        layer: the layer.
        place: which of the grid's places (sets of positions).
        head: the head; None: all of them, or the site has none.
    """

    layer: int
    place: int
    head: int | None


def by_position(kind: str, value: Tensor) -> Tensor:
    """A site's value with its positions (of a map: its queries) on the second axis, and heads behind; a view."""
    return value.transpose(1, 2) if kind in ATTENTION_KINDS else value


@dataclass(frozen=True)
class Written:
    """Values of other prompts that are written into rows, at each cell's own places and head.

    Arguments:
        kind: the kind of site.
        values: layer -> (prompt, position, ...), as `by_position` gives it, of the source prompts.
        length: tokens of the prompts that are written into.
        base, source: by place, the tokens that are written, and those that the values stand at.
    """

    kind: str
    values: Mapping[int, Tensor]
    length: int
    base: Positions
    source: Positions

    def from_position(self, first: int) -> Written:
        """The same without tokens before a position that stand at the same one in both prompts."""
        base, source = list(self.base), list(self.source)
        for place, (columns, own) in enumerate(zip(self.base, self.source, strict=True)):
            if columns is not None and own is not None:
                kept = [(to, of) for to, of in zip(columns, own, strict=True) if to != of or to >= first]
                base[place], source[place] = tuple(to for to, _ in kept), tuple(of for _, of in kept)
        return replace(self, base=base, source=source)

    def is_there(self, cell: Cell, live: Tensor) -> bool:
        """Whether what a cell writes is there already, as embeddings of equal tokens are.

        Arguments:
            cell: of a site without heads.
            live: (prompt, position, hidden), the site in the prompts that are written into, from the first token on.
        """
        columns, own = self.base[cell.place], self.source[cell.place]
        if not columns or not own:
            return False
        value, there = self.values[cell.layer][:, _index(own)], live[:, _index(columns)]
        return torch.equal(value.to(there.device), there)

    def into(self, live: Tensor, layer: int, cells: Sequence[Cell]) -> Tensor:
        """What a site becomes in rows of some cells, cell by cell, in each the prompts in order.

        Arguments:
            live: the site's value, in the site's own order of axes; it may lack the first positions of the prompts.
            layer: the layer.
            cells: of that layer.
        """
        new = live.clone()
        view = by_position(self.kind, new).unflatten(0, (len(cells), -1))  # (cell, prompt, position, ...)
        values = self.values[layer].to(device=view.device, dtype=view.dtype)
        missing = self.length - view.shape[2]
        for cell, rows in zip(cells, view, strict=True):
            columns, own = self.base[cell.place], self.source[cell.place]
            assert columns is not None and own is not None  # the prompts have the place
            there, given = _index([column - missing for column in columns]), _index(own)
            head = () if cell.head is None else (cell.head,)
            rows[:, there, *head] = values[:, given, *head]
        return new


def _index(columns: Sequence[int]) -> slice | list[int]:
    """Positions as a slice, where they are one."""
    first, last = columns[0], columns[-1]
    return slice(first, last + 1) if last - first == len(columns) - 1 else list(columns)


def values_at(
    model: StandardizedTransformer,
    input_ids: Sequence[Sequence[int]],
    sites: Sequence[Site],
    media: Sequence[Media | None] | None = None,
) -> tuple[dict[Site, Tensor], Tensor]:
    """Run prompts of one length once, and keep whole sites, each as `by_position` gives it.

    Arguments:
        model: the model.
        input_ids: of each prompt.
        sites: what is kept.
        media: what each is fed beside its ids, all or none of them.

    Returns:
        Site -> (prompt, position, ...); and (prompt, hidden), after the last layer at the last token.
    """
    found: dict[Site, Tensor] = {}
    ends: list[Tensor] = []
    last = Site("resid_post", model.num_layers - 1)

    def keeping(site: Site) -> Callable[[Tensor], None]:
        def keep(value: Tensor) -> None:
            found[site] = by_position(site.kind, value).clone()

        return keep

    visits = [Visit(str(site), place_of(model, site), keeping(site)) for site in sites]
    visits.append(Visit(str(last), place_of(model, last), lambda value: ends.append(value[:, -1].clone())))
    run_whole(model, input_ids, visits, media)
    return found, ends[0]


def run_whole(
    model: StandardizedTransformer,
    input_ids: Sequence[Sequence[int]],
    visits: Sequence[Visit],
    media: Sequence[Media | None] | None = None,
) -> None:
    inputs = inputs_of_prompts(model, input_ids, media)
    with faster_products(inputs["input_ids"].numel(), model.hidden_size, model.dtype, model.device):
        run_visiting(model, visits, stop=True, **inputs, use_cache=False)


@torch.no_grad()
def run_cells(
    model: StandardizedTransformer,
    input_ids: Sequence[Sequence[int]],
    cells: Sequence[Cell],
    written: Written,
    media: Sequence[Media | None],
) -> Tensor:
    """The plain way: one forward pass of whole prompts for some cells of one layer, written with visits.

    Arguments:
        model: the model.
        input_ids: of each prompt, all equally long.
        cells: of one layer.
        written: what is written.
        media: what each prompt is fed beside its ids, all or none of them.

    Returns:
        (cell, prompt, hidden), after the last layer at the last token.
    """
    ends: list[Tensor] = []
    layer = cells[0].layer
    site, last = Site(written.kind, layer), Site("resid_post", model.num_layers - 1)
    visits = [
        Visit(str(site), place_of(model, site), lambda live: written.into(live, layer, cells)),
        Visit(str(last), place_of(model, last), lambda value: ends.append(value[:, -1].clone())),
    ]
    run_whole(model, [list(ids) for ids in input_ids] * len(cells), visits, [*media] * len(cells))
    return ends[0].unflatten(0, (len(cells), -1))


def heads_of(model: StandardizedTransformer, kind: str, layer: int) -> int:
    """How many heads a site of a layer has.

    Arguments:
        model: the model, which has the site.
        kind: one of `HEAD_KINDS`.
        layer: the layer.
    """
    place = place_of(model, Site(kind, layer))
    if isinstance(place, HeadOutPlace):
        return place.z.num_heads
    if isinstance(place, ZPlace):
        return place.num_heads
    if kind not in ("k", "v"):
        return heads_in(model, layer)
    by_layer = model.spec.num_kv_heads_by_layer
    own = None if by_layer is None else by_layer[layer]
    return model.num_kv_heads if own is None else own

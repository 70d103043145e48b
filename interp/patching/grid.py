"""A grid of patches: cells of one kind of site, by layer, position and head, each a run of its own of every prompt.

A cell at layer l and position p leaves everything before p, and all layers up to l, as they were. So the prompts are
run once; cells whose first position is alike walk together, from that position on over the keys of the one run, each
from its layer on; at the last layer, only the last token goes through. Inside a layer, values are written while that
layer alone runs (`interp.model.visits`). The plain way is a forward pass of whole prompts for each cell, many in a
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from interp import passes
from interp.batching import Budget, batches_alike
from interp.forward import FrozenPrefix, LastLayer, first_changed, forget_lengths
from interp.forward.batch import Feed
from interp.forward.layers import by_name
from interp.forward.prefix import FrozenLayer
from interp.matmul import faster_products
from interp.model.fed import whole_inputs
from interp.model.places import HeadOutPlace, ZPlace
from interp.model.resolve import place_of
from interp.model.verdicts import Pair, sample_ids, verdicts_of
from interp.model.visits import Visit, run_visiting, visit_part
from interp.patching.changed_attention import heads_in
from interp.patching.fits import fits
from interp.patching.patched_runs import Call, CleanRun, calls_of
from interp.patching.run import Plan
from interp.sites import ATTENTION_KINDS, HEAD_KINDS, MAP_KINDS, Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "Cell",
    "GridEnds",
    "GridPlan",
    "RecordedRun",
    "Written",
    "by_position",
    "heads_of",
    "run_cells",
    "values_at",
]

# Neighbouring positions start together where few tokens walk, at most a share of these in vain.
_FEW_TOKENS, _IN_VAIN = 2048, 8
# Tokens of rows that go through a layer at once on a processor: few enough for what it makes to stay in the caches.
_PIECE = 2048
_LAST_TOKEN = "walking rows end with their last token"  # of `verdicts_of`: whether the last layer runs at it alone

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


class GridEnds(NamedTuple):
    """What some cells of some prompts end with.

    Arguments:
        rows: the prompts, by number.
        cells: the cells, by number.
        hidden: (cell, row, hidden), after the last layer at the last token of each patched run; None: these cells
            change nothing, and were not run.
        base, source: (row, hidden), the same of the prompts as they are: those that are written into, and those that
            the values are of.
    """

    rows: list[int]
    cells: list[int]
    hidden: Tensor | None
    base: Tensor
    source: Tensor


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
    model: StandardizedTransformer, input_ids: Sequence[Sequence[int]], sites: Sequence[Site]
) -> tuple[dict[Site, Tensor], Tensor]:
    """Run prompts of one length once, and keep whole sites, each as `by_position` gives it.

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
    _run_whole(model, input_ids, visits)
    return found, ends[0]


def _run_whole(model: StandardizedTransformer, input_ids: Sequence[Sequence[int]], visits: Sequence[Visit]) -> None:
    inputs = whole_inputs(model, input_ids)
    with faster_products(inputs["input_ids"].numel(), model.hidden_size, model.dtype, model.device):
        run_visiting(model, visits, stop=True, **inputs, use_cache=False)


@torch.no_grad()
def run_cells(
    model: StandardizedTransformer, input_ids: Sequence[Sequence[int]], cells: Sequence[Cell], written: Written
) -> Tensor:
    """The plain way: one forward pass of whole prompts for some cells of one layer, written with visits.

    Arguments:
        model: the model.
        input_ids: of each prompt, all equally long.
        cells: of one layer.
        written: what is written.

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
    _run_whole(model, [list(ids) for ids in input_ids] * len(cells), visits)
    return ends[0].unflatten(0, (len(cells), -1))


@dataclass(frozen=True)
class RecordedRun:
    """Prompts of one length, run once as they are: keys and values of all their tokens, and every residual stream.

    Arguments:
        model: the model.
        input_ids: (prompt, position).
        cache: keys and values of all tokens.
        hidden: before each layer, and after the last: (prompt, position, hidden).
    """

    model: StandardizedTransformer
    input_ids: Tensor
    cache: DynamicCache
    hidden: list[Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, model: StandardizedTransformer, input_ids: Tensor) -> RecordedRun:
        """Run prompts.

        Arguments:
            model: the model.
            input_ids: (prompt, position), without padding.
        """
        forget_lengths(model)
        hidden: list[Tensor] = []

        def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden.append(next(iter(by_name(layer, args, kwargs).values())))

        def after(_: nn.Module, args: Any, output: Any) -> None:
            hidden.append(output if isinstance(output, Tensor) else output[0])

        layers = [model.layer(index)._module for index in range(model.num_layers)]
        hooks = [*(passes.before(layer, before) for layer in layers), passes.after(layers[-1], after)]
        try:
            prefix = FrozenPrefix.of(model, input_ids)
        finally:
            for hook in hooks:
                hook.remove()
        return cls(model, input_ids, prefix.cache, hidden)

    @torch.no_grad()
    def at(self, changed: int) -> CleanRun:
        """The same run, ready for rows that leave it at some position or later.

        How layers are called from there on is found out by one prompt; without padding it is the same for all.

        Arguments:
            changed: the first position that is changed.
        """
        start = first_changed(self.model, self.input_ids.shape[1], changed)
        whole, one = self._prefix(slice(None), start), self._prefix(slice(1), start)
        calls = [
            Call(_with_cache(call.keywords, one, whole), before[:, start:], after[:, start:])
            for call, before, after in zip(
                calls_of(self.model, one, self.input_ids[:1, start:]), self.hidden[:-1], self.hidden[1:], strict=True
            )
        ]
        return CleanRun(self.model, whole, calls)

    def _prefix(self, prompts: slice, length: int) -> FrozenPrefix:
        """The first tokens of some of the prompts."""
        cache = DynamicCache()
        cache.layers = []
        for layer in self.cache.layers:
            own = FrozenLayer()
            if length:
                keys, values = layer.keys[prompts, ..., :length, :], layer.values[prompts, ..., :length, :]
                own.lazy_initialization(keys, values)
                own.keys, own.values = keys, values
            own.module = self.model._module
            cache.layers.append(own)
        return FrozenPrefix(cache, length)


def _with_cache(keywords: dict[str, Any], one: FrozenPrefix, whole: FrozenPrefix) -> dict[str, Any]:
    return {name: whole.cache if value is one.cache else value for name, value in keywords.items()}


@dataclass(frozen=True)
class GridPlan(Plan[GridEnds]):
    """Cells of one kind of site, over pairs of prompts.

    Arguments:
        lm: the model.
        kind: the kind of site.
        base_ids, source_ids: per pair: the prompt that is written into, and the one that the values are of.
        base, source: per pair, by place: the tokens that are written, and those that the values stand at.
        cells: what is run.
    """

    lm: StandardizedTransformer
    kind: str
    base_ids: Sequence[Sequence[int]]
    source_ids: Sequence[Sequence[int]]
    base: Sequence[Positions]
    source: Sequence[Positions]
    cells: Sequence[Cell]

    @property
    def model(self) -> StandardizedTransformer:
        return self.lm

    @property
    def input_ids(self) -> Sequence[Sequence[int]]:
        return self.base_ids

    @property
    def positions(self) -> Sequence[Any]:
        """What pairs of one batch share, beside the length of the prompt that is written into."""
        return [
            (len(source), self._same(row), tuple(self.base[row]), tuple(self.source[row]))
            for row, source in enumerate(self.source_ids)
        ]

    @property
    def num_runs(self) -> int:
        """One: how many cells walk at once is chosen for each batch."""
        return 1

    def fits(self) -> bool:
        """Whether the walk gives what whole forward passes give, with this kind of site written."""
        name = f"patches of {self.kind}"
        return fits(
            self.lm, name, lambda length: _trial(self.lm, self.kind, length), longest=self.longest, choice=_LAST_TOKEN
        )

    def fast(self, rows: list[int]) -> Iterator[GridEnds]:
        written, source = self._written(rows)
        written = written.from_position(self._same(rows[0]))
        ids = torch.tensor([list(self.base_ids[row]) for row in rows], device=self.lm.device)
        run = RecordedRun.of(self.lm, ids)
        ends = run.hidden[-1][:, -1]
        there = self._there(rows)
        changed = [cell for cell in there if written.base[self.cells[cell].place] and self.changes(self.cells[cell])]
        unchanged = [cell for cell in there if cell not in set(changed)]
        if unchanged:
            yield GridEnds(rows, unchanged, None, ends, source)
        for start, cells in self._walks(changed, written.base, len(rows), ids.shape[1]):
            clean = run.at(start)
            hidden = self.walked(clean, [self.cells[cell] for cell in cells], written)
            yield GridEnds(rows, cells, hidden.unflatten(0, (len(cells), len(rows))), ends, source)

    def walked(self, clean: CleanRun, cells: Sequence[Cell], written: Written) -> Tensor:
        """(cell and prompt, hidden), what cells end with by the walk; they ascend by layer."""
        return _walk(clean, cells, written)

    def whole(self, input_ids: Sequence[Sequence[int]], cells: Sequence[Cell], written: Written) -> Tensor:
        """(cell, prompt, hidden), the same of cells of one layer by forward passes of whole prompts."""
        return run_cells(self.lm, input_ids, cells, written)

    def changes(self, cell: Cell) -> bool:
        """Whether a cell can change anything, whatever is written."""
        return True

    def slow(self, rows: list[int]) -> Iterator[GridEnds]:
        ids, positions = [self.base_ids[row] for row in rows], [self.positions[row] for row in rows]
        for batch in batches_alike(ids, positions, len(rows), self.num_runs):
            own = [rows[index] for index in batch]
            prompts = [self.base_ids[row] for row in own]
            written, source = self._written(own)
            _, ends = values_at(self.lm, prompts, [])
            tokens = len(own) * len(prompts[0])
            size = max(1, Budget.of(None, self.lm.device).tokens // tokens)
            for layer in sorted({cell.layer for cell in self.cells}):
                there = [cell for cell in self._there(own) if self.cells[cell].layer == layer]
                for start in range(0, len(there), size):
                    some = there[start : start + size]
                    hidden = self.whole(prompts, [self.cells[cell] for cell in some], written)
                    yield GridEnds(own, some, hidden, ends, source)

    def nothing(self) -> GridEnds:
        none = torch.empty(0, self.lm.hidden_size, dtype=torch.float32, device="cpu")
        return GridEnds([], [], none[None], none, none)

    def _there(self, rows: Sequence[int]) -> list[int]:
        """The cells that prompts have, by number, by layer."""
        places = self.base[rows[0]]
        there = [index for index, cell in enumerate(self.cells) if places[cell.place] is not None]
        return sorted(there, key=lambda index: self.cells[index].layer)

    def _same(self, row: int) -> int:
        """How many tokens both prompts of a pair begin with: values there are the same, and writing changes nothing.

        None are where the rotation depends on a prompt's length.
        """
        base, source = self.base_ids[row], self.source_ids[row]
        shorter = min(len(base), len(source))
        same = next((place for place in range(shorter) if base[place] != source[place]), shorter)
        return first_changed(self.lm, max(len(base), len(source)), same)

    def _written(self, rows: Sequence[int]) -> tuple[Written, Tensor]:
        """What is written into prompts, and what the prompts that it is of end with."""
        layers = sorted({cell.layer for cell in self.cells})
        sites = [Site(self.kind, layer) for layer in layers]
        found, ends = values_at(self.lm, [self.source_ids[row] for row in rows], sites)
        values = {layer: found[site] for layer, site in zip(layers, sites, strict=True)}
        first = rows[0]
        return Written(self.kind, values, len(self.base_ids[first]), self.base[first], self.source[first]), ends

    def _walks(self, cells: Sequence[int], base: Positions, rows: int, length: int) -> Iterator[tuple[int, list[int]]]:
        """Cells that walk together: the position that they start at, and the cells by layer.

        Arguments:
            cells: by number.
            base: by place, the tokens that are written.
            rows, length: how many prompts, and their tokens.
        """
        by_start: dict[int, list[int]] = {}
        for index in cells:
            places = base[self.cells[index].place]
            assert places  # something is written
            by_start.setdefault(places[0], []).append(index)
        together: list[tuple[int, list[int]]] = []
        for start, beside in sorted(by_start.items()):
            if together:
                first, others = together[-1]
                tokens = (len(others) + len(beside)) * rows * (length - first)
                if start - first <= (length - first) // _IN_VAIN and tokens <= _FEW_TOKENS:
                    others += beside
                    continue
            together.append((start, list(beside)))
        limit = self.budget or Budget.of(None, self.lm.device).tokens * 64
        for start, walking in together:
            walking.sort(key=lambda index: self.cells[index].layer)
            size = max(1, limit // (rows * (length - start)))
            for at in range(0, len(walking), size):
                yield start, walking[at : at + size]


def _walk(clean: CleanRun, cells: Sequence[Cell], written: Written) -> Tensor:
    """(cell and prompt, hidden), after the last layer at the last token; cells ascend by layer."""
    model, kind = clean.model, written.kind
    prompts = len(clean.hidden(-1))
    walking = clean.hidden(-1)[:0]
    for layer in range(cells[0].layer, model.num_layers):
        joining = [cell for cell in cells if cell.layer == layer]
        entering = clean.hidden(layer - 1).repeat(len(joining), 1, 1)  # (cell and prompt, position, hidden)
        if joining and kind == "resid_pre":
            walking = torch.cat([walking, written.into(entering, layer, joining)])
        walking = _through(clean, layer, walking, prompts)
        if joining and kind != "resid_pre":
            if kind == "resid_post":
                joined = written.into(clean.hidden(layer).repeat(len(joining), 1, 1), layer, joining)
            else:
                joined = _inside(clean, layer, entering, joining, written)
            walking = torch.cat([walking, joined[:, -walking.shape[1] :]])
    return walking[:, -1]


def _inside(clean: CleanRun, layer: int, entering: Tensor, cells: Sequence[Cell], written: Written) -> Tensor:
    """Let the rows of some cells through the layer in which their site is."""
    model, site = clean.model, Site(written.kind, layer)
    prompts = len(entering) // len(cells)
    size = max(1, _PIECE // (prompts * entering.shape[1])) if entering.device.type == "cpu" else len(cells)
    found = []
    for start in range(0, len(cells), size):
        some = cells[start : start + size]
        rows = entering[start * prompts : (start + len(some)) * prompts]
        visit = Visit(str(site), place_of(model, site), partial(written.into, layer=layer, cells=some))
        # Attention's own values are there for all keys of a row, so each has a copy of the prefix.
        shares = site.kind not in ATTENTION_KINDS
        part = partial(clean.through, layer, rows, shares=shares)
        found.append(visit_part(model, [visit], part, (rows.shape[0], rows.shape[1])))
    return torch.cat(found)


def _through(clean: CleanRun, layer: int, walking: Tensor, prompts: int) -> Tensor:
    """Let walking rows through a layer, some at a time; through the last one at their last token alone."""
    model = clean.model
    last = layer == model.num_layers - 1 and bool(verdicts_of(model).get(_LAST_TOKEN))
    if not len(walking):
        return walking[:, -1:] if last else walking
    size = len(walking)
    if walking.device.type == "cpu":
        size = max(1, _PIECE // (prompts * walking.shape[1])) * prompts
    through = _last_token if last else CleanRun.through
    pieces = [through(clean, layer, piece) for piece in walking.split(size)]
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _last_token(clean: CleanRun, layer: int, hidden: Tensor) -> Tensor:
    """(row, 1, hidden), what a layer gives at the last token of each row; of the others it needs keys and values."""
    model = clean.model
    part = LastLayer(model, layer)
    part.take(model.layer(layer)._module, (hidden,), clean.calls[layer].keywords)
    feed = Feed({}, clean.prefix if clean.prefix.length else None)
    rows = torch.arange(len(hidden), device=hidden.device)
    products = faster_products(hidden.shape[0] * hidden.shape[1], model.hidden_size, model.dtype, model.device)
    with products:
        return part.at(rows, torch.full_like(rows, hidden.shape[1] - 1), feed)[:, None]


def _trial(model: StandardizedTransformer, kind: str, length: int) -> list[Pair]:
    """Two pairs of prompts of a length, cells at three layers, several places and two heads, each way."""
    ids = sample_ids(model, length=length).tolist()
    layers = [layer for layer in range(model.num_layers) if model.has(Site(kind, layer))]
    middle = length // 2
    places = [(middle,), (middle + 2,), (length - 1,), (1, middle), tuple(range(length))]
    heads = [None] if kind not in HEAD_KINDS else [None, 0, heads_of(model, kind, layers[0]) - 1]
    if kind in MAP_KINDS:
        places = places[2:]
    cells = [
        Cell(layer, place, head)
        for layer in sorted({layers[0], layers[len(layers) // 2], layers[-1]})
        for place in range(len(places))
        for head in heads
    ]
    plan = GridPlan(model, kind, ids, ids[::-1], [places] * 2, [places] * 2, cells)

    def ends(way: Callable[[list[int]], Iterator[GridEnds]]) -> Tensor:
        found = torch.empty(len(cells), len(ids), model.hidden_size, device=model.device, dtype=model.dtype)
        for part in way([0, 1]):
            found[part.cells] = part.base if part.hidden is None else part.hidden[:, torch.tensor(part.rows).argsort()]
        return found

    return [(lambda: ends(plan.fast), lambda: ends(plan.slow))]


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

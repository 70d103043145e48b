"""A grid of patches: cells of one kind of site, by layer, position and head, each a run of its own of every prompt.

A cell at layer l and position p leaves everything before p, and all layers up to l, as they were. So the prompts are
run once; cells whose first position is alike walk together, from that position on over the keys of the one run, each
from its layer on; at the last layer, only the last token goes through. Inside a layer, values are written while that
layer alone runs (`interp.model.visits`). The plain way is a forward pass of whole prompts for each cell, many in a
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from interp.batching import WALKING_TOKENS, Budget, batches_alike
from interp.forward import first_changed
from interp.model.image_inputs import batches_images
from interp.model.verdicts import Pair, sample_ids
from interp.patching.cells import Cell, Positions, Written, by_position, heads_of, run_cells, values_at
from interp.patching.fits import fits
from interp.patching.grid_walk import LAST_TOKEN, RecordedRun, walk_cells
from interp.patching.patched_runs import CleanRun
from interp.patching.run import Plan
from interp.prompts import Media
from interp.sites import HEAD_KINDS, MAP_KINDS, Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Cell", "GridEnds", "GridPlan", "by_position", "grid_trial", "heads_of", "values_at"]

# Neighbouring positions start together where few tokens walk, at most a share of these in vain.
_FEW_TOKENS, _IN_VAIN = 2048, 8


class GridEnds(NamedTuple):
    """What some cells of some prompts end with.

    Arguments:
        rows: the prompts, by number.
        cells: the cells, by number.
        hidden: (cell, row, hidden), after the last layer at the last token of each patched run.
        base, source: (row, hidden), the same of the prompts as they are: those that are written into, and those that
            the values are of.
        changed: False: these cells change nothing, and were not run.
    """

    rows: list[int]
    cells: list[int]
    hidden: Tensor
    base: Tensor
    source: Tensor
    changed: bool = True


@dataclass(frozen=True)
class GridPlan(Plan[GridEnds]):
    """Cells of one kind of site, over pairs of prompts.

    Arguments:
        lm: the model.
        kind: the kind of site.
        base_ids, source_ids: per pair: the prompt that is written into, and the one that the values are of.
        base, source: per pair, by place: the tokens that are written, and those that the values stand at.
        cells: what is run.
        base_media, source_media: what these prompts are fed beside their ids; empty: nothing.
    """

    lm: StandardizedTransformer
    kind: str
    base_ids: Sequence[Sequence[int]]
    source_ids: Sequence[Sequence[int]]
    base: Sequence[Positions]
    source: Sequence[Positions]
    cells: Sequence[Cell]
    base_media: Sequence[Media | None] = ()
    source_media: Sequence[Media | None] = ()

    @property
    def model(self) -> StandardizedTransformer:
        return self.lm

    @property
    def input_ids(self) -> Sequence[Sequence[int]]:
        return self.base_ids

    @property
    def media(self) -> Sequence[Media | None]:
        """Of each pair, what the one or the other prompt has."""
        return [own or other for own, other in zip(*self._both_media(range(len(self.base_ids))), strict=True)]

    @property
    def positions(self) -> Sequence[Any]:
        """What pairs of one batch share, beside the length of the prompt that is written into."""
        sees = [[one is not None for one in media] for media in self._both_media(range(len(self.base_ids)))]
        return [
            (len(source), self._same(row), tuple(self.base[row]), tuple(self.source[row]), sees[0][row], sees[1][row])
            for row, source in enumerate(self.source_ids)
        ]

    @property
    def num_runs(self) -> int:
        """Values that are kept of each token of a source prompt, in residual streams: what bounds prompts in a batch.

        How many cells walk at once is chosen for each batch.
        """
        layers = {cell.layer for cell in self.cells}
        return max(1, len(layers)) * (self.lm.num_heads if self.kind == "head_out" else 1)

    def fits(self) -> bool:
        """Whether the walk gives what whole forward passes give, with this kind of site written."""
        name = f"patches of {self.kind}"
        make = partial(GridPlan, self.lm, self.kind)
        return fits(self.lm, name, partial(grid_trial, make), longest=self.longest, choice=LAST_TOKEN)

    def fast(self, rows: list[int]) -> Iterator[GridEnds]:
        written, source = self._written(rows)
        written = written.from_position(self._same(rows[0]))
        ids = torch.tensor([list(self.base_ids[row]) for row in rows], device=self.lm.device)
        run = RecordedRun.of(self.lm, ids)
        ends = run.hidden[-1][:, -1]
        there = self._there(rows)
        same = [self.kind == "resid_pre" and written.is_there(cell, run.hidden[cell.layer]) for cell in self.cells]
        changed = [
            cell
            for cell in there
            if written.base[self.cells[cell].place] and self.changes(self.cells[cell]) and not same[cell]
        ]
        unchanged = [cell for cell in there if cell not in set(changed)]
        if unchanged:
            as_is = ends.expand(len(unchanged), *ends.shape)
            yield GridEnds(rows, unchanged, as_is, ends, source, changed=False)
        for start, cells in self._walks(changed, written.base, len(rows), ids.shape[1]):
            clean = run.at(start)
            hidden = self.walked(clean, [self.cells[cell] for cell in cells], written, rows)
            yield GridEnds(rows, cells, hidden.unflatten(0, (len(cells), len(rows))), ends, source)

    def walked(self, clean: CleanRun, cells: Sequence[Cell], written: Written, rows: Sequence[int]) -> Tensor:
        """(cell and prompt, hidden), what cells of some prompts end with by the walk; they ascend by layer."""
        return walk_cells(clean, cells, written)

    def whole(self, rows: Sequence[int], cells: Sequence[Cell], written: Written) -> Tensor:
        """(cell, prompt, hidden), the same of cells of one layer by forward passes of whole prompts."""
        return run_cells(self.lm, [self.base_ids[row] for row in rows], cells, written, self._both_media(rows)[0])

    def changes(self, cell: Cell) -> bool:
        """Whether a cell can change anything, whatever is written."""
        return True

    def slow(self, rows: list[int]) -> Iterator[GridEnds]:
        ids, positions = [self.base_ids[row] for row in rows], [self.positions[row] for row in rows]
        for batch in batches_alike(ids, positions, len(rows), self.num_runs):
            own = [rows[index] for index in batch]
            prompts = [self.base_ids[row] for row in own]
            written, source = self._written(own)
            _, ends = values_at(self.lm, prompts, [], self._both_media(own)[0])
            tokens = len(own) * len(prompts[0])
            size = max(1, Budget.of(None, self.lm.device).tokens // tokens)
            if any(self._both_media(own)[0]) and not batches_images(self.lm):
                size = 1
            for layer in sorted({cell.layer for cell in self.cells}):
                there = [cell for cell in self._there(own) if self.cells[cell].layer == layer]
                for start in range(0, len(there), size):
                    some = there[start : start + size]
                    hidden = self.whole(own, [self.cells[cell] for cell in some], written)
                    yield GridEnds(own, some, hidden, ends, source)

    def nothing(self) -> GridEnds:
        none = torch.empty(0, self.lm.hidden_size, dtype=torch.float32, device="cpu")
        return GridEnds([], [], none[None], none, none)

    def _both_media(self, rows: Sequence[int]) -> tuple[list[Media | None], list[Media | None]]:
        """Of some pairs, what the prompts that are written into are fed beside their ids, and the others."""

        def of(own: Sequence[Media | None]) -> list[Media | None]:
            return [own[row] if own else None for row in rows]

        return of(self.base_media), of(self.source_media)

    def _there(self, rows: Sequence[int]) -> list[int]:
        """The cells that prompts have, by number, by layer."""
        places = self.base[rows[0]]
        there = [index for index, cell in enumerate(self.cells) if places[cell.place] is not None]
        return sorted(there, key=lambda index: self.cells[index].layer)

    def _same(self, row: int) -> int:
        """How many tokens both prompts of a pair begin with: values there are the same, and writing changes nothing.

        None are where the rotation depends on a prompt's length, or where there are images.
        """
        if any(one is not None for (one,) in self._both_media([row])):
            return 0
        base, source = self.base_ids[row], self.source_ids[row]
        shorter = min(len(base), len(source))
        same = next((place for place in range(shorter) if base[place] != source[place]), shorter)
        return first_changed(self.lm, max(len(base), len(source)), same)

    def _written(self, rows: Sequence[int]) -> tuple[Written, Tensor]:
        """What is written into prompts, and what the prompts that it is of end with."""
        layers = sorted({cell.layer for cell in self.cells})
        sites = [Site(self.kind, layer) for layer in layers]
        found, ends = values_at(self.lm, [self.source_ids[row] for row in rows], sites, self._both_media(rows)[1])
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
        limit = self.budget or min(WALKING_TOKENS, Budget.of(None, self.lm.device).tokens * 64)
        for start, walking in together:
            walking.sort(key=lambda index: self.cells[index].layer)
            size = max(1, limit // (rows * (length - start)))
            for at in range(0, len(walking), size):
                yield start, walking[at : at + size]


def grid_trial(make: Callable[..., GridPlan], length: int) -> list[Pair]:
    """Two pairs of prompts of a length, cells at three layers, several places and two heads, each way.

    Arguments:
        make: given prompts, sources, places of both, and cells: the plan.
        length: tokens of the prompts.
    """
    model, kind = make([], [], [], [], []).lm, make([], [], [], [], []).kind
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
    plan = make(ids, ids[::-1], [places] * 2, [places] * 2, cells)

    def ends(way: Callable[[list[int]], Iterator[GridEnds]]) -> Tensor:
        found = torch.empty(len(cells), len(ids), model.hidden_size, device=model.device, dtype=model.dtype)
        for part in way([0, 1]):
            found[part.cells] = part.hidden[:, torch.tensor(part.rows, device="cpu").argsort()]
        return found

    return [(lambda: ends(plan.fast), lambda: ends(plan.slow))]

"""Path patching: does one part of the model speak to another one directly?

Activation patching says that a sender matters, by whatever way. Here its change reaches the receivers through the
residual stream alone: every other attention and MLP on the way is held at what it gives in the unpatched run. What the
receivers get then is written into an unpatched run, and all behind them goes on as it does. In plain nnsight, from a
head to the queries of a later one:

    with model.trace(base):                       # held: outputs of base; the sender's value is the source run's
        z = model.read("z.3").clone()
        z[:, :, head] = z_of_source[:, :, head]
        model.write("z.3", z)
        for layer in range(3, 7):                 # each but the sender's own output: attn_out.3
            model.write(f"mlp_out.{layer}", mlp_out_of_base[layer])
            model.write(f"attn_out.{layer + 1}", attn_out_of_base[layer + 1])
        received = model.read("q.7").clone().save()
    with model.trace(base):
        model.write("q.7", received)
        logits = model.logits[:, -1].save()

The fast way needs no layer between the two: with everything held, the residual stream before the receiver is that of
the unpatched run plus what the sender has changed.

Wang et al. 2023 (arXiv 2211.00593; they let MLPs go on: `frozen=["attn_out"]`), Goldowsky-Dill et al. 2023 (arXiv
2304.05969).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.forward import check_ready
from interp.model.resolve import place_of
from interp.model.visits import Visit
from interp.passes import in_turn
from interp.patching.activation_patching import (
    Pairs,
    Places,
    PositionSets,
    Spellings,
    cells_of,
    heads_among,
    kinds_of,
    layers_of,
    measure,
    tokens_of,
)
from interp.patching.cells import Cell, Written, by_position, run_whole, values_at
from interp.patching.effects import Answers, Metric, Metrics
from interp.patching.fits import fits
from interp.patching.grid import GridPlan, grid_trial
from interp.patching.grid_walk import LAST_TOKEN, through, visiting
from interp.patching.patched_runs import CleanRun
from interp.results import Coordinate, Direction, PatchingResult
from interp.sites import ATTENTION_KINDS, MAP_KINDS, Site, Spelling, parse_sites

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["FROZEN", "PathPlan", "path_patching"]

FROZEN = ("attn_out", "mixer_out", "mlp_out")
"""The outputs that are held on the way: all that later parts add to the residual stream."""
_INSIDE = {
    "attn_out": ("attn_in", *ATTENTION_KINDS, "z", "head_out", "attn_out"),
    "mixer_out": ("mixer_in", "mixer_out"),
    "mlp_out": ("mlp_in", "mlp_post", "mlp_out"),
}  # output -> what is on the way to it in its own sublayer


@in_turn
@torch.no_grad()
def path_patching(
    model: StandardizedTransformer,
    clean: Any,
    corrupted: Any,
    senders: str,
    receivers: Spelling | Sequence[Spelling],
    positions: PositionSets = None,
    *,
    images: Any = None,
    corrupted_images: Any = None,
    receiver_positions: Spellings | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | str | None = None,
    frozen: Sequence[str] = FROZEN,
    direction: Direction = "denoising",
    metric: Metric | Sequence[Metric] | Mapping[str, Metric] = "logit_difference",
    answers: Answers | None = None,
    batch_size: int = 64,
) -> PatchingResult:
    """Patch the direct path from each sender to receivers, over pairs of prompts; everything else is held.

    Arguments:
        model: the model.
        clean, corrupted: the pairs, as in `activation_patching`.
        senders: the kind of site that sends, such as `z`, `head_out`, `mlp_out`, `resid_pre`.
        receivers: one or several sites that receive, written together: `q.9.h6`, `["v.7.h3", "v.8.h1"]`,
            `resid_post.-1` (the direct effect on the logits).
        positions: where senders are patched, as in `activation_patching`; None: whole prompts.
        images, corrupted_images: of the pairs, as in `activation_patching`.
        receiver_positions: where receivers receive, in the prompt that is written into; None: everywhere.
        layers, heads: of the senders, as in `activation_patching`.
        frozen: the outputs that are held between sender and receivers.
        direction: `denoising` or `noising`; Wang et al. patch in the second.
        metric, answers, batch_size: as in `activation_patching`.

    Returns:
        The metric of every patched run over `(example, layer, [position,] [head])` of the senders. A sender behind all
        receivers changes nothing.

    Raises:
        InterpError: what `activation_patching` refuses; receivers that are not part of layers or not in the model, or
            an output that cannot be held.
    """
    check_ready(model)
    kinds = kinds_of(senders)
    if len(kinds) > 1:
        raise InterpError(f"senders: expected one kind of site, got {kinds}. Patch each in a call of its own.")
    kind = kinds[0]
    base, source = Pairs.of(model, clean, corrupted, images, corrupted_images).directed(direction)
    places = Places.of(positions, base, source, whole=kind in MAP_KINDS)
    there = layers_of(model, kind, layers)
    chosen = heads_among(model, heads, {kind: there})
    metrics = Metrics.of(model, metric, answers, len(base))
    received_at = [
        tuple(range(len(one.input_ids)))
        if receiver_positions is None
        else tokens_of(receiver_positions, one, "receiver")
        for one in base
    ]
    cells = cells_of(model, kind, there, len(places.labels), chosen)
    into, of = ([one.input_ids for one in prompts] for prompts in (base, source))
    own, other = ([one.media for one in prompts] for prompts in (base, source))
    receiving = _receivers(model, receivers)
    plan = PathPlan(
        model, kind, into, of, places.base, places.source, cells, own, other, receiving, _frozen(frozen), received_at
    )  # fmt: skip
    values, of_runs = measure(plan, metrics, direction, batch_size)
    patched = np.full((len(base), len(there), len(places.labels), len(chosen), len(metrics.names)), np.nan, np.float32)
    for cell, of_cell in zip(cells, values, strict=True):
        patched[:, there.index(cell.layer), cell.place, chosen.index(cell.head)] = of_cell
    axes: dict[str, Sequence[Coordinate]] = {
        "example": range(len(base)), "layer": there, "position": places.labels,
        "head": [head for head in chosen if head is not None],
    }  # fmt: skip
    asked = {"position": positions is not None, "head": heads is not None}
    dropped = [axis for axis, is_asked in asked.items() if not is_asked]
    return PatchingResult(
        {axis: along for axis, along in axes.items() if axis not in dropped},
        patched=patched.squeeze(tuple(list(axes).index(axis) for axis in dropped)),
        **of_runs,
        token_ids=None if positions is None else places.token_ids(base),
        direction=direction,
        group_names=metrics.names,
    )


def _receivers(model: StandardizedTransformer, receivers: Spelling | Sequence[Spelling]) -> tuple[Site, ...]:
    found = model.in_order(parse_sites(receivers, model.num_layers, model.num_heads, model.num_kv_heads))
    for site in found:
        if site.layer is None:
            raise InterpError(
                f"receivers: {str(site)!r} is not part of a layer. The direct effect on the logits is that on "
                f"resid_post.{model.num_layers - 1}."
            )
        place_of(model, site)
    return tuple(found)


def _frozen(frozen: Sequence[str]) -> tuple[str, ...]:
    unknown = [kind for kind in frozen if kind not in FROZEN]
    if isinstance(frozen, str) or unknown:
        raise InterpError(f"frozen: expected some of {', '.join(FROZEN)}, got {frozen!r}.")
    return tuple(frozen)


@dataclass(frozen=True)
class PathPlan(GridPlan):
    """Cells of senders, whose change reaches receivers directly.

    Arguments:
        receivers: in the order of a forward pass.
        frozen: the outputs that are held.
        received_at: per pair: the tokens at which receivers receive.
    """

    receivers: tuple[Site, ...] = ()
    frozen: tuple[str, ...] = FROZEN
    received_at: Sequence[tuple[int, ...]] = ()

    @property
    def positions(self) -> Sequence[Any]:
        return [(*own, at) for own, at in zip(super().positions, self.received_at, strict=True)]

    def fits(self) -> bool:
        """Whether the fast way gives what whole forward passes give, from this kind of sender to these receivers."""
        if set(self.frozen) != set(FROZEN):
            return False  # what is not held has to be run
        kinds = ", ".join(dict.fromkeys(site.kind for site in self.receivers))
        name = f"paths from {self.kind} to {kinds}"

        def make(ids: Any, sources: Any, base: Any, source: Any, cells: Any) -> PathPlan:
            at = [tuple(range(len(one))) for one in ids]
            return replace(
                self, base_ids=ids, source_ids=sources, base=base, source=source, cells=cells, received_at=at,
                base_media=(), source_media=(),
            )  # fmt: skip

        return fits(self.lm, name, partial(grid_trial, make), longest=self.longest, choice=LAST_TOKEN)

    def changes(self, cell: Cell) -> bool:
        """Whether a receiver comes behind the sender."""
        return any(Site(self.kind, cell.layer) < Site(site.kind, site.layer) for site in self.receivers)

    def held(self, layer: int, sender: int) -> list[Site]:
        """The outputs of a layer that are held, where the sender is in layer `sender`."""
        kinds = [kind for kind in self.frozen if self.lm.has(Site(kind, layer))]
        own = [kind for kind in kinds if layer == sender and self.kind in _INSIDE[kind]]
        receiving = {site.kind for site in self.receivers if site.layer == layer}
        return [Site(kind, layer) for kind in kinds if kind not in own and kind not in receiving]

    def whole(self, rows: Sequence[int], cells: Sequence[Cell], written: Written) -> Tensor:
        """Two forward passes of whole prompts: what receivers get, and what comes of it."""
        layer, model = cells[0].layer, self.lm
        prompts = [list(self.base_ids[row]) for row in rows]
        last = max(site.layer or 0 for site in self.receivers)
        held = [site for index in range(layer, last + 1) for site in self.held(index, layer)]
        media = self._both_media(rows)[0]
        values, ends = values_at(model, prompts, held, media)
        if not self.changes(cells[0]):
            return ends.expand(len(cells), *ends.shape)
        received = _Received(model, self._receiving(layer), self.received_at[rows[0]], written.length)
        visits = [self._sending(cells, written, layer)]
        visits += [self._holding(site, values[site]) for site in held]
        run_whole(model, prompts * len(cells), [*visits, *received.reading()], media * len(cells))
        found: list[Tensor] = []
        final = Site("resid_post", model.num_layers - 1)
        keep = Visit(str(final), place_of(model, final), lambda value: found.append(value[:, -1].clone()))
        run_whole(model, prompts * len(cells), [*received.writing(), keep], media * len(cells))
        return found[0].unflatten(0, (len(cells), -1))

    def walked(self, clean: CleanRun, cells: Sequence[Cell], written: Written, rows: Sequence[int]) -> Tensor:
        """The same by the layers of senders and receivers, and those behind the first receiver, alone."""
        found = []
        for layer in dict.fromkeys(cell.layer for cell in cells):
            received = _Received(self.lm, self._receiving(layer), self.received_at[rows[0]], written.length)
            found.append(self._walked(clean, layer, [cell for cell in cells if cell.layer == layer], written, received))
        return torch.cat(found)

    def _walked(
        self, clean: CleanRun, layer: int, cells: Sequence[Cell], written: Written, received: _Received
    ) -> Tensor:
        copies, prompts = len(cells), len(clean.hidden(-1))

        def through_held(index: int, rows: Tensor, sending: Sequence[Visit] = ()) -> Tensor:
            held = self.held(index, layer)
            values = _outputs(clean, index, held)
            visits = [*sending, *(self._holding(site, values[site]) for site in held), *received.reading(index)]
            return visiting(clean, index, rows, visits, inside)

        inside = [Site(self.kind, layer), *self.receivers]
        entering = clean.hidden(layer - 1).repeat(copies, 1, 1)  # (cell and prompt, position, hidden)
        sent = through_held(layer, entering, [self._sending(cells, written, layer)])
        changed = sent - clean.hidden(layer).repeat(copies, 1, 1)
        for index in received.layers:
            if index > layer:  # with all between held, the residual stream has what the sender has changed
                through_held(index, clean.hidden(index - 1).repeat(copies, 1, 1) + changed)
        first = received.layers[0]
        walking = clean.hidden(first - 1).repeat(copies, 1, 1)
        for index in range(first, self.lm.num_layers):
            if index in received.layers:
                walking = visiting(clean, index, walking, received.writing(index), self.receivers)
            else:
                walking = through(clean, index, walking, prompts)
        return walking[:, -1]

    def _receiving(self, sender: int) -> list[Site]:
        """The receivers in the sender's layer and behind it."""
        return [site for site in self.receivers if site.layer is not None and site.layer >= sender]

    def _sending(self, cells: Sequence[Cell], written: Written, layer: int) -> Visit:
        site = Site(self.kind, layer)
        return Visit(str(site), place_of(self.lm, site), partial(written.into, layer=layer, cells=cells))

    def _holding(self, site: Site, value: Tensor) -> Visit:
        """Write the outputs of prompts (prompt, position, hidden) into all their rows."""

        def hold(live: Tensor) -> Tensor:
            return value[:, value.shape[1] - live.shape[1] :].repeat(len(live) // len(value), 1, 1)

        return Visit(str(site), place_of(self.lm, site), hold)


def _outputs(clean: CleanRun, layer: int, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Site -> (prompt, position, hidden), outputs in a layer of the prompts as they are."""
    found: dict[Site, Tensor] = {}

    def keeping(site: Site) -> Callable[[Tensor], None]:
        def keep(value: Tensor) -> None:
            found[site] = value.clone()

        return keep

    visits = [Visit(str(site), place_of(clean.model, site), keeping(site)) for site in sites]
    visiting(clean, layer, clean.hidden(layer - 1), visits, sites)
    return found


class _Received:
    """What receivers get in some rows, to be read in one run and written in another of the same rows.

    Arguments:
        model: the model.
        receivers: the receivers.
        at: the tokens at which they receive.
        length: tokens of the prompts.
    """

    def __init__(
        self, model: StandardizedTransformer, receivers: Sequence[Site], at: Sequence[int], length: int
    ) -> None:
        self.model, self.at, self.length = model, at, length
        self.heads: dict[Site, list[int] | None] = {}
        for site in receivers:
            whole = Site(site.kind, site.layer)
            known = self.heads.get(whole, [])
            self.heads[whole] = None if site.head is None or known is None else [*known, site.head]
        self.values: dict[Site, Tensor] = {}

    @property
    def layers(self) -> list[int]:
        """The receivers' layers, ascending."""
        return sorted({site.layer for site in self.heads if site.layer is not None})

    def reading(self, layer: int | None = None) -> list[Visit]:
        """Visits that keep what receivers get, of one layer or all."""

        def keeping(site: Site) -> Callable[[Tensor], None]:
            def keep(value: Tensor) -> None:
                self.values[site] = value.clone()

            return keep

        return [Visit(str(site), place_of(self.model, site), keeping(site)) for site in self._of(layer)]

    def writing(self, layer: int | None = None) -> list[Visit]:
        """Visits that write it."""

        def writer(site: Site) -> Callable[[Tensor], Tensor]:
            def write(live: Tensor) -> Tensor:
                new = live.clone()
                view, value = by_position(site.kind, new), by_position(site.kind, self.values[site])
                missing, heads = self.length - view.shape[1], self.heads[site]
                columns = [column - missing for column in self.at if column >= missing]
                if heads is None:
                    view[:, columns] = value[:, columns]
                else:
                    for head in heads:
                        view[:, columns, head] = value[:, columns, head]
                return new

            return write

        return [Visit(str(site), place_of(self.model, site), writer(site)) for site in self._of(layer)]

    def _of(self, layer: int | None) -> list[Site]:
        return [site for site in self.heads if layer is None or site.layer == layer]

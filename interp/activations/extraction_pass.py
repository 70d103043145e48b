"""One batch of an `Extraction`: a forward pass in which each thing is taken, and reduced, as the model arrives at it.

The copies are of the positions that are asked for alone. Of a map that is reduced to statistics, only these leave the
visit, so that the patterns of one layer are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations.cached_run import CacheRequest
from interp.activations.edited_pass import EditedPass, Read
from interp.activations.extracted_kinds import (
    OF_LAST_NORM,
    Derived,
    Extracted,
    axes_of_extracted,
    is_map,
)
from interp.activations.forward_passes import ForwardPasses
from interp.activations.layer_maps import LayerMaps, SlotColumns, accumulating, check_values_add_up
from interp.activations.prompt_batches import PaddingSide, Pass
from interp.activations.prompt_runs import planned_edits
from interp.activations.site_copies import SiteReader
from interp.activations.token_slots import TokenSlots
from interp.errors import InterpError
from interp.interventions import Intervention
from interp.interventions.edits import Edit
from interp.model.places import HeadOutPlace, ModulePlace
from interp.model.resolve import place_of
from interp.model.visits import Visit
from interp.prompts import Encoded
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["BatchSlots", "BatchValues", "ExtractionPlan"]


@dataclass(frozen=True)
class BatchSlots:
    """The tokens of a batch of prompts that something is taken at.

    Arguments:
        position: of what is at tokens.
        query, key: rows and columns of maps.
    """

    position: TokenSlots
    query: TokenSlots
    key: TokenSlots

    def of_axis(self, axis: str) -> TokenSlots | None:
        """Those along an axis, by its name (`query`, `query_name`); None where it has no tokens."""
        return getattr(self, axis.removesuffix("_name"), None)

    @classmethod
    def together(cls, several: Sequence[BatchSlots]) -> BatchSlots:
        """Those of several batches, one behind the other."""
        of = {
            axis: TokenSlots.together([getattr(one, axis) for one in several]) for axis in ("position", "query", "key")
        }
        return cls(**of)


@dataclass
class BatchValues:
    """What was taken from a batch.

    Arguments:
        tensors: what is kept of each example, (example, ...), by name.
        sums: what is averaged over examples: the sums over those that have the slot, in float64.
        counts: how many these are, in the shape of the sums' slots.
        slots: the tokens.
        input_ids: of each prompt.
    """

    slots: BatchSlots
    input_ids: list[list[int]]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ExtractionPlan:
    """An `Extraction` of one model, checked.

    Arguments:
        model: the model.
        kept: what is kept of each example.
        averaged: what is averaged over examples.
        mean_over_positions: whether each named position has one value, the mean of its tokens'.
        device: of what is kept; None: as it is.
        dtype: of what is kept of sites, not of statistics; None: as it is.
    """

    model: StandardizedTransformer
    kept: Sequence[Extracted]
    averaged: Sequence[Extracted]
    mean_over_positions: bool
    device: torch.device | str | None
    dtype: torch.dtype | None

    def check(self) -> None:
        """Refuse what can be seen only by running the model.

        Raises:
            InterpError: values of a layer that do not add up to what its heads give; no last norm.
        """
        by_value = [x.layer for x in self.taken if isinstance(x, Derived) and "value" in x.kind and x.layer is not None]
        check_values_add_up(self.model, by_value)
        if any(x.kind in OF_LAST_NORM for x in self.taken):
            _last_norm(self.model)

    @property
    def taken(self) -> list[Extracted]:
        """All that is taken, each once."""
        return list(dict.fromkeys([*self.kept, *self.averaged]))

    @property
    def has_maps(self) -> bool:
        """Whether anything has queries and keys."""
        return any("query" in axis for x in self.taken for axis in self.axes(x))

    def axes(self, one: Extracted) -> tuple[str, ...]:
        """Names of the axes of what is kept."""
        return axes_of_extracted(one, mean_over_positions=self.mean_over_positions)

    def run(
        self,
        encoded: list[Encoded],
        slots: BatchSlots,
        *,
        interventions: Intervention | Iterable[Intervention] = (),
        batch_size: int | None = None,
        padding_side: PaddingSide = "left",
    ) -> BatchValues:
        """Run a batch of prompts.

        Arguments:
            encoded: the prompts.
            slots: their tokens that something is taken at.
            interventions: what is changed; it acts before anything is taken.
            batch_size: prompts in a forward pass at most; None: all.
            padding_side: where shorter prompts are padded.
        """
        self.check()
        size = len(encoded) if batch_size is None else batch_size
        passes = ForwardPasses.whole(self.model, encoded, size, padding_side)
        values = BatchValues(slots, [list(one.input_ids) for one in encoded])
        edits = planned_edits(passes, interventions)
        with torch.no_grad():
            passes.read(lambda one: self._visits(passes, one, values, edits))
            if any(one.kind == "input_ids" for one in self.kept):
                self._input_ids(values)
        return values

    def _visits(self, passes: ForwardPasses, one: Pass, values: BatchValues, edits: Sequence[Edit]) -> list[Visit]:
        reading = _PassReading(self, passes, one, values)
        changes: list[Visit] = []
        if edits:
            read = Read.nothing(len(one.batch.rows))
            changes = EditedPass(self.model, passes.window(one), edits, read).visits()
        made = reading.visits()
        return [*changes, *made] if made else []

    def of_tensors(self, encoded: list[Encoded], slots: BatchSlots, held: Mapping[Site, Tensor]) -> BatchValues:
        """What `run` gives, from whole tensors that hooks have kept in one pass of prompts of one length.

        Arguments:
            encoded: the prompts, all of one length.
            slots: their tokens that something is taken at.
            held: what there was at `sites`, (prompt, ...), without padding.
        """
        passes = ForwardPasses.whole(self.model, encoded, len(encoded), "left")
        values = BatchValues(slots, [list(one.input_ids) for one in encoded])
        reading = _PassReading(self, passes, passes.passes[0], values)
        sites, steps = reading.by_site()
        places = {site: _Held(held[site]) for site in sites}
        _Steps(reading, sites, places, steps).read()
        if self._norms:
            reading.norms(self._norms, held[Site("resid_post", self.model.num_layers - 1)])
        return values

    def sites(self, encoded: list[Encoded], slots: BatchSlots) -> list[Site]:
        """Where `of_tensors` needs tensors of, without heads, in the order of the model; arguments as there."""
        passes = ForwardPasses.whole(self.model, encoded, len(encoded), "left")
        reading = _PassReading(self, passes, passes.passes[0], BatchValues(slots, []))
        last = [Site("resid_post", self.model.num_layers - 1)] if self._norms else []
        return list(self.model.in_order([*{*reading.by_site()[0], *last}]))

    @property
    def _norms(self) -> list[Extracted]:
        return [x for x in self.taken if x.kind in OF_LAST_NORM]

    def _input_ids(self, values: BatchValues) -> None:
        table = values.slots.position.table
        ids = torch.tensor(
            [
                [row[token] for token in tokens.clamp(min=0).tolist()]
                for row, tokens in zip(values.input_ids, table, strict=True)
            ],
            dtype=torch.long,
            device="cpu",
        )
        values.tensors["input_ids"] = torch.where(table < 0, -1, ids.reshape(table.shape)).to(self.device or "cpu")


# In one pass ----------------------------------------------------------------------------------------------------------


class _PassReading:
    """Takes what is asked for from one pass, and reduces it.

    Arguments:
        plan: what is asked for.
        passes: the passes of the batch.
        one: the pass.
        values: where it goes.
    """

    def __init__(self, plan: ExtractionPlan, passes: ForwardPasses, one: Pass, values: BatchValues) -> None:
        self.plan, self.passes, self.one, self.values = plan, passes, one, values
        self.axes = {axis: SlotColumns(getattr(values.slots, axis), one) for axis in ("position", "query", "key")}
        plain = [x for x in plan.taken if isinstance(x, Site) and not is_map(x)]
        self._reduces = plan.mean_over_positions or any(x in plan.averaged for x in plain)
        self._request = CacheRequest(
            passes, plain, [], values.slots.position.table, [], 0,
            None if self._reduces else torch.device(plan.device or plan.model.device),
            None if self._reduces else plan.dtype,
        )  # fmt: skip
        self._reader = SiteReader(self._request, one, self)  # type: ignore[arg-type]
        self._plain: dict[Site, list[Site]] = {}
        for site in plain:
            self._plain.setdefault(replace(site, head=None), []).append(site)
        self._maps: dict[int, LayerMaps] = {}
        for x in plan.taken:
            if x.layer is not None and (is_map(x) or (isinstance(x, Derived))):
                self._maps.setdefault(x.layer, LayerMaps(self, plan.model, x.layer, self.axes)).wanted.append(x)

    def visits(self) -> list[Visit]:
        """One visit of all sites, and one of what the final norm receives."""
        sites, steps = self.by_site()
        visits = []
        if sites:
            places = {site: place_of(self.plan.model, site) for site in sites}
            visits.append(Visit("extraction", _Steps(self, sites, places, steps), lambda _: None))
        norms = self.plan._norms
        if norms:
            visits.append(Visit("last_norm", _last_norm(self.plan.model), lambda value: self.norms(norms, value)))
        return visits

    def by_site(self) -> tuple[list[Site], dict[Site, list[Callable[[Tensor], None]]]]:
        """The sites that are read, in the order of the model, and what is done with those of maps."""
        steps: dict[Site, list[Callable[[Tensor], None]]] = {}
        for layer in self._maps.values():
            for site, call in layer.steps():
                steps.setdefault(site, []).append(call)
        return list(self.plan.model.in_order([*{*self._plain, *steps}])), steps

    def plain(self, site: Site, place: Any) -> None:
        """Take what is at a site, and heads of it."""
        asked = self._plain[site]
        if isinstance(place, HeadOutPlace):  # heads are projected at the positions that are kept alone
            self._reader.take(site, place.z.read(), asked, place.heads)
        else:
            self._reader.take(site, place.read(), asked, (lambda value: value) if self._reduces else None)

    # What `SiteReader` hands on ---------------------------------------------------------------------------------------

    def put(self, site: Site, one: Pass, value: Tensor) -> None:
        """Keep what a pass gave of a site at the positions, (row, ...)."""
        self.keep(site, value)

    def share(self, site: Site, other: Site, one: Pass) -> None:
        """Keep for a site what was kept of another."""
        tensors, rows = self.values.tensors, self.one.batch.rows
        if rows == list(range(len(self.values.input_ids))):
            tensors[str(site)] = tensors[str(other)]
        else:
            kept = tensors[str(other)]
            self._store(str(site), kept[torch.tensor(rows, device="cpu").to(kept.device)])

    # Keeping ----------------------------------------------------------------------------------------------------------

    def keep(self, what: Extracted, value: Tensor, *, reduced: bool = False) -> None:
        """Keep a value, (row, ...) with NaN at slots that a row lacks, of each example or added up over them.

        Arguments:
            what: whose it is.
            value: along the axes of what is extracted.
            reduced: it has names along its axes already, in place of slots.
        """
        axes = list(axes_of_extracted(what))
        if self.plan.mean_over_positions and not reduced:
            for axis in ("position", "query", "key"):
                if axis in axes:
                    value = self.axes[axis].means(value, axes.index(axis))
            reduced = True
        if what in self.plan.averaged:
            self._add(what, value, () if reduced else axes)
        if what in self.plan.kept:
            dtype = self.plan.dtype if isinstance(what, Site) else None  # statistics keep theirs
            self._store(str(what), value.to(device=self.plan.device or value.device, dtype=dtype or value.dtype))

    def _store(self, name: str, value: Tensor) -> None:
        rows = self.one.batch.rows
        examples = len(self.values.input_ids)
        if rows == list(range(examples)):
            self.values.tensors[name] = value
            return
        if name not in self.values.tensors:
            self.values.tensors[name] = value.new_full((examples, *value.shape[1:]), torch.nan)
        whole = self.values.tensors[name]
        if value.shape[1:] != whole.shape[1:]:
            raise InterpError(
                f"{name}: expected {tuple(whole.shape[1:])} of each prompt, got {tuple(value.shape[1:])}."
            )
        whole[torch.tensor(rows, device="cpu").to(whole.device)] = value

    def _add(self, what: Extracted, value: Tensor, axes: Sequence[str]) -> None:
        """Add a value up over the rows that have each slot."""
        name, sums, counts = str(what), self.values.sums, self.values.counts
        there = torch.ones(value.shape[0], *[1] * (value.dim() - 1), dtype=torch.bool, device=value.device)
        for axis in ("position", "query", "key"):
            if axis in axes:
                there = there & self.axes[axis].along(value, axes.index(axis))
        exact = torch.float32 if value.device.type == "mps" else torch.float64
        total = torch.where(there, value.to(exact), 0).sum(0).to(self.plan.device or value.device)
        count = there.sum(0).to(total.device)
        sums[name] = sums[name] + total if name in sums else total
        counts[name] = counts[name] + count if name in counts else count

    def norms(self, wanted: Sequence[Extracted], value: Tensor) -> None:
        """Keep statistics of what the last norm receives."""
        at = self.axes["position"]
        hidden = at.at(value.detach(), 1)
        hidden = hidden.to(accumulating(hidden))
        mean = hidden.mean(-1)
        found = {
            "last_norm_mean": mean,
            "last_norm_variance": (hidden - mean[..., None]).pow(2).mean(-1),
            "last_norm_second_moment": hidden.pow(2).mean(-1),
        }
        for what in wanted:
            numbers = found[what.kind]
            self.keep(what, numbers.masked_fill(~at.there.to(numbers.device), torch.nan))


@dataclass(frozen=True)
class _Held:
    """A tensor that a hook has kept, in place of a place."""

    value: Tensor

    def read(self) -> Tensor:
        return self.value


@dataclass
class _Steps:
    """Places that are read one after the other, in the order of the forward pass: a worker each would cost more."""

    reading: _PassReading
    sites: Sequence[Site]
    places: dict[Site, Any]
    steps: dict[Site, list[Callable[[Tensor], None]]]

    def read(self) -> Tensor:
        for site in self.sites:
            if site in self.reading._plain:
                self.reading.plain(site, self.places[site])
            if site in self.steps:
                value = self.places[site].read().detach()
                for call in self.steps[site]:
                    call(value)
        return torch.empty(0)

    def write(self, value: Tensor) -> None:
        raise AssertionError("an extraction only reads")  # what its visit returns is None


def _last_norm(model: StandardizedTransformer) -> ModulePlace:
    """What the final norm receives."""
    if not model.architecture.final_norm:
        raise InterpError(
            "last_norm: the model has no norm after its last layer. Write resid_post.-1 for what it gives."
        )
    return ModulePlace(model.get(str(model.architecture.final_norm)), "input", "last_norm")

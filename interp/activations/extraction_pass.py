"""One batch of an `Extraction`: a forward pass in which each thing is taken, and reduced, as the model arrives at it.

The copies are of the positions that are asked for alone. Of a map that is reduced to statistics, only these leave the
visit, so that the patterns of one layer are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.activations.cached_run import CacheRequest
from interp.activations.edited_pass import EditedPass, Read
from interp.activations.extracted_kinds import (
    OF_LAST_NORM,
    Derived,
    Extracted,
    axes_of_extracted,
    is_map,
    needed,
)
from interp.activations.forward_passes import ForwardPasses
from interp.activations.prompt_batches import PaddingSide, Pass
from interp.activations.prompt_runs import planned_edits
from interp.activations.site_copies import SiteReader
from interp.activations.token_slots import TokenSlots
from interp.errors import InterpError
from interp.interventions import Intervention
from interp.interventions.edits import Edit
from interp.model.places import HeadOutPlace, ModulePlace
from interp.model.resolve import head_out_place, place_of
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
        device, dtype: of what is kept; dtype None: as it is.
    """

    model: StandardizedTransformer
    kept: Sequence[Extracted]
    averaged: Sequence[Extracted]
    mean_over_positions: bool
    device: torch.device | str | None
    dtype: torch.dtype | None

    @property
    def taken(self) -> list[Extracted]:
        """All that is taken, each once."""
        return list(dict.fromkeys([*self.kept, *self.averaged]))

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


class _Columns:
    """Where the tokens of some slots are in a padded batch.

    Attributes:
        columns: (row, slot), 0 where there is none.
        there: (row, slot).
    """

    def __init__(self, slots: TokenSlots, one: Pass) -> None:
        table = slots.table[torch.tensor(one.batch.rows, device="cpu")]
        self.there = table >= 0
        self.columns = one.batch.columns(table).clamp(min=0)
        self.members = slots.members
        self.even = bool((self.columns == self.columns[:1]).all())

    def at(self, value: Tensor, axis: int) -> Tensor:
        """Of a value, what is at the slots along an axis; at slots that a row lacks, anything."""
        columns = self.columns.to(value.device)
        if self.even:
            return value.index_select(axis, columns[0])
        view, shape = [1] * value.dim(), [*value.shape]
        view[0], view[axis] = columns.shape
        shape[axis] = columns.shape[1]
        return value.gather(axis, columns.view(view).expand(shape))

    def along(self, value: Tensor, axis: int) -> Tensor:
        """`there`, with axes to broadcast against a value."""
        view = [1] * value.dim()
        view[0], view[axis] = self.there.shape
        return self.there.view(view).to(value.device)

    def means(self, value: Tensor, axis: int) -> Tensor:
        """The mean over the slots of each name along an axis, of a value that may be NaN where a row has none."""
        wide = value.to(_accumulating(value))
        wide = torch.where(self.along(value, axis), wide, 0).movedim(axis, -1)
        members = self.members.to(wide)  # (slot, name)
        counts = self.there.to(members.device).to(members) @ members  # (row, name)
        sums = wide @ members
        return (sums / counts.view(len(counts), *[1] * (sums.dim() - 2), -1)).movedim(-1, axis).to(value.dtype)


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
        self.axes = {axis: _Columns(getattr(values.slots, axis), one) for axis in ("position", "query", "key")}
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
        self._maps: dict[int, _LayerMaps] = {}
        for x in plan.taken:
            if x.layer is not None and (is_map(x) or (isinstance(x, Derived))):
                self._maps.setdefault(x.layer, _LayerMaps(self, x.layer)).wanted.append(x)

    def visits(self) -> list[Visit]:
        """One visit of all sites, and one of what the final norm receives."""
        steps: dict[Site, list[Callable[[Tensor], None]]] = {}
        for layer in self._maps.values():
            for site, call in layer.steps():
                steps.setdefault(site, []).append(call)
        sites = self.plan.model.in_order([*{*self._plain, *steps}])
        visits = []
        if sites:
            places = {site: place_of(self.plan.model, site) for site in sites}
            visits.append(Visit("extraction", _Steps(self, sites, places, steps), lambda _: None))
        norms = [x for x in self.plan.taken if x.kind in OF_LAST_NORM]
        if norms:
            visits.append(Visit("last_norm", _last_norm(self.plan.model), lambda value: self._norms(norms, value)))
        return visits

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
            self._store(str(site), tensors[str(other)][torch.tensor(rows).to(tensors[str(other)].device)])

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
            self._store(str(what), value)

    def _store(self, name: str, value: Tensor) -> None:
        plan, rows = self.plan, self.one.batch.rows
        value = value.to(device=plan.device or value.device, dtype=plan.dtype or value.dtype)
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

    def _norms(self, wanted: Sequence[Extracted], value: Tensor) -> None:
        at = self.axes["position"]
        hidden = at.at(value.detach(), 1)
        hidden = hidden.to(_accumulating(hidden))
        mean = hidden.mean(-1)
        found = {
            "last_norm_mean": mean,
            "last_norm_variance": (hidden - mean[..., None]).pow(2).mean(-1),
            "last_norm_second_moment": hidden.pow(2).mean(-1),
        }
        for what in wanted:
            numbers = found[what.kind]
            self.keep(what, numbers.masked_fill(~at.there.to(numbers.device), torch.nan))


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


def _accumulating(value: Tensor) -> torch.dtype:
    """The dtype in which numbers of a tensor are added up."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


# Maps of one layer ----------------------------------------------------------------------------------------------------


class _LayerMaps:
    """What is computed from a layer's values, scores and pattern.

    Arguments:
        reading: the pass.
        layer: the layer.
    """

    def __init__(self, reading: _PassReading, layer: int) -> None:
        self.reading, self.layer = reading, layer
        self.wanted: list[Extracted] = []
        self._norms: Tensor | None = None  # (row, head, key)
        self._seen: Tensor | None = None  # (row, head, query, key), the weight of uniform attention

    def steps(self) -> list[tuple[Site, Callable[[Tensor], None]]]:
        """What is done with what is at each site, `v` first."""
        kinds = {x.kind for x in self.wanted}
        sites = {site.kind for x in self.wanted if isinstance(x, Derived) for site in needed(x.kind, x.layer)}
        sites |= kinds & {"scores", "pattern"}
        calls = {"v": self._values, "scores": self._scores, "pattern": self._pattern}
        return [(Site(kind, self.layer), call) for kind, call in calls.items() if kind in sites]

    def _heads(self, kinds: Callable[[str], bool], count: int) -> list[int]:
        """The heads that some kinds are wanted of."""
        heads: set[int] = set()
        for x in self.wanted:
            if kinds(x.kind):
                heads |= set(range(count)) if x.head is None else {x.head}
        if heads and max(heads) >= count:
            raise InterpError(f"layer {self.layer} has {count} heads, from 0; got head {max(heads)}.")
        return sorted(heads)

    def _keep(self, what: Extracted, value: Tensor, heads: Sequence[int], axis: int, *, reduced: bool = False) -> None:
        """Keep of a value with a head axis the heads that are wanted."""
        if what.head is not None:
            value = value.select(axis, heads.index(what.head)).clone()
        elif list(heads) != list(range(len(heads))) or len(heads) != value.shape[axis]:
            raise AssertionError("a thing of all heads is taken with all heads")
        self.reading.keep(what, value, reduced=reduced)

    def _values(self, value: Tensor) -> None:
        """Values through the output projection: (row, key-value head, position, width)."""
        matrices = _output_weight(self.reading.plan.model, self.layer, value.shape[-1])  # head, width, hidden
        group = len(matrices) // value.shape[1]
        heads = self._heads(lambda kind: kind == "projected_value", len(matrices))
        if heads:
            at = self.reading.axes["position"]
            own = at.at(value, 2)  # row, key-value head, slot, width
            projected = torch.stack(
                [own[:, head // group] @ matrices[head] for head in heads], 2
            )  # row, slot, head, hidden
            projected = projected.masked_fill(~at.along(projected, 1), torch.nan)
            for what in self.wanted:
                if what.kind == "projected_value":
                    self._keep(what, projected, heads, 2)
        heads = self._heads(lambda kind: kind.startswith("value_weighted"), len(matrices))
        if heads:
            own = self.reading.axes["key"].at(value, 2)
            norms = [(own[:, head // group] @ matrices[head]).float().norm(dim=-1) for head in heads]
            self._norms = torch.stack(norms, 1)  # row, head, key

    def _scores(self, value: Tensor) -> None:
        """Which keys each query sees, by the scores: (row, head, query, key)."""
        heads = self._heads(lambda kind: kind.endswith("_ratio"), value.shape[1])
        if heads:
            rows = self.reading.axes["query"].at(_of_heads(value, heads), 2)
            # What hides a key is the least number of the model's dtype, or minus infinity.
            seen = rows > torch.finfo(self.reading.plan.model.dtype).min / 2
            weight = seen.float() / seen.sum(-1, keepdim=True).clamp(min=1)
            self._seen = self.reading.axes["key"].at(weight, 3)
        self._plain("scores", value)

    def _plain(self, kind: str, value: Tensor) -> None:
        heads = self._heads(lambda other: other == kind, value.shape[1])
        if heads:
            taken = self._at(value, heads)
            for what in self.wanted:
                if what.kind == kind:
                    self._keep(what, taken, heads, 1)

    def _at(self, value: Tensor, heads: Sequence[int]) -> Tensor:
        """(row, head, query, key) at the slots, NaN where a row lacks one."""
        taken = self.reading.axes["key"].at(self.reading.axes["query"].at(_of_heads(value, heads), 2), 3)
        return taken.masked_fill(~self._there(taken), torch.nan)

    def _there(self, value: Tensor) -> Tensor:
        axes = self.reading.axes
        return axes["query"].along(value, 2) & axes["key"].along(value, 3)

    def _pattern(self, value: Tensor) -> None:
        """The pattern and what is made of it."""
        self._plain("pattern", value)
        for prefix in ("pattern_", "value_weighted_"):
            heads = self._heads(lambda kind, prefix=prefix: kind.startswith(prefix), value.shape[1])  # type: ignore[misc]
            if not heads:
                continue
            weights = self._at(value, heads)
            weights = weights.to(_accumulating(weights))
            norms = None
            if prefix == "value_weighted_":
                assert self._norms is not None
                norms = self._norms
                weights = weights * norms[:, :, None]
            ratio_heads = self._heads(lambda kind: kind.endswith("_ratio"), value.shape[1])
            for what in self.wanted:
                if what.kind == "value_weighted_pattern" and prefix == "value_weighted_":
                    self._keep(what, weights, heads, 1)
                elif what.kind.startswith(prefix) and what.kind != "value_weighted_pattern":
                    statistic = what.kind.removeprefix(prefix)
                    found = self._block(statistic, weights, heads, norms, ratio_heads)
                    self._keep(what, found, heads, 1, reduced=True)
        self._norms = self._seen = None

    def _block(
        self, statistic: str, weights: Tensor, heads: Sequence[int], norms: Tensor | None, ratio_heads: Sequence[int]
    ) -> Tensor:
        """(row, head, query name, key name), a statistic of each block of a map."""
        sums = self._sums(weights)
        if statistic == "sum":
            return sums
        if statistic == "mean":
            return sums / self._sums(torch.ones_like(weights[:, :1]))
        assert self._seen is not None
        uniform = self._seen[:, [ratio_heads.index(head) if head in ratio_heads else 0 for head in heads]]
        uniform = uniform.to(weights) if norms is None else uniform.to(weights) * norms[:, :, None]
        return sums / self._sums(uniform)

    def _sums(self, value: Tensor) -> Tensor:
        """(row, head, query name, key name), the sum of each block over the slots that are there."""
        axes = self.reading.axes
        there = torch.where(self._there(value), value, 0)
        return axes["query"].members.to(value).T @ there @ axes["key"].members.to(value)


def _of_heads(value: Tensor, heads: Sequence[int]) -> Tensor:
    """(row, head, ...) of some heads."""
    if list(heads) == list(range(value.shape[1])):
        return value
    return value.index_select(1, torch.tensor(heads, device="cpu").to(value.device))


def _output_weight(model: StandardizedTransformer, layer: int, width: int) -> Tensor:
    """(head, width, hidden), the matrix of an output projection, by heads of so many numbers."""
    place = head_out_place(model, layer, f"head_out.{layer}")
    module = place.projection._module
    if type(module) is nn.Linear and type(module.weight) is nn.Parameter:
        return module.weight.detach().T.unflatten(0, (-1, width))
    if type(module) is Conv1D:
        return module.weight.detach().unflatten(0, (-1, width))
    rows = torch.eye(place.z.num_heads * width, dtype=model.dtype, device=model.device)[None]
    return (
        (place.projection(rows) - place.projection(torch.zeros_like(rows[:, :1])))[0].detach().unflatten(0, (-1, width))
    )

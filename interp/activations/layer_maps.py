"""What is made of one layer's attention: statistics of blocks, value-weighted patterns, projected values.

The pattern of a layer is in memory once, for a pass; what leaves a visit is what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.activations.cached_run import run_with_cache
from interp.activations.extracted_kinds import Derived, Extracted, needed
from interp.activations.prompt_batches import Pass
from interp.activations.token_slots import TokenSlots
from interp.attention.interface import hidden_score
from interp.errors import InterpError
from interp.model.hooks import hooks_aside
from interp.model.resolve import head_out_place
from interp.model.verdicts import off_by, sample_ids, verdicts_of
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["LayerMaps", "SlotColumns", "accumulating", "check_values_add_up", "output_weight"]


class SlotColumns:
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
        width = self.columns.shape[1]
        self._whole = width if self.even and self.columns[0].tolist() == list(range(width)) else -1

    def at(self, value: Tensor, axis: int) -> Tensor:
        """Of a value, what is at the slots along an axis (it, where that is all); anything where a row lacks one."""
        if self._whole == value.shape[axis]:
            return value
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
        wide = value.to(accumulating(value))
        wide = torch.where(self.along(value, axis), wide, 0).movedim(axis, -1)
        members = self.members.to(wide)  # (slot, name)
        counts = self.there.to(members.device).to(members) @ members  # (row, name)
        sums = wide @ members
        return (sums / counts.view(len(counts), *[1] * (sums.dim() - 2), -1)).movedim(-1, axis).to(value.dtype)


def accumulating(value: Tensor) -> torch.dtype:
    """The dtype in which numbers of a tensor are added up."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


class Keeper(Protocol):
    """Takes what was made."""

    def keep(self, what: Extracted, value: Tensor, *, reduced: bool = False) -> None:
        """Keep a value along the axes of what is extracted; `reduced`: with names along them in place of slots."""


class LayerMaps:
    """What is computed from a layer's values, scores and pattern.

    Arguments:
        keeper: takes what is made.
        model: the model.
        layer: the layer.
        axes: where the tokens are, by axis: `position`, `query`, `key`.
    """

    def __init__(
        self, keeper: Keeper, model: StandardizedTransformer, layer: int, axes: Mapping[str, SlotColumns]
    ) -> None:
        self.keeper, self.model, self.layer, self.axes = keeper, model, layer, axes
        self.wanted: list[Extracted] = []
        self._norms: Tensor | None = None  # (row, head, key)
        self._seen: Tensor | None = None  # (row, head or 1, query, key), the weight of uniform attention

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
        self.keeper.keep(what, value, reduced=reduced)

    def _values(self, value: Tensor) -> None:
        """Values through the output projection: (row, key-value head, position, width)."""
        matrices = output_weight(self.model, self.layer, value.shape[-1])  # head, width, hidden
        group = len(matrices) // value.shape[1]
        heads = self._heads(lambda kind: kind == "projected_value", len(matrices))
        if heads:
            at = self.axes["position"]
            own = at.at(value, 2)  # row, key-value head, slot, width
            each = [own[:, head // group] @ matrices[head] for head in heads]
            projected = torch.stack(each, 2)  # row, slot, head, hidden
            projected = projected.masked_fill(~at.along(projected, 1), torch.nan)
            for what in self.wanted:
                if what.kind == "projected_value":
                    self._keep(what, projected, heads, 2)
        heads = self._heads(lambda kind: kind.startswith("value_weighted"), len(matrices))
        if heads:
            own = self.axes["key"].at(value, 2)
            norms = [(own[:, head // group] @ matrices[head]).float().norm(dim=-1) for head in heads]
            self._norms = torch.stack(norms, 1)  # row, head, key

    def _scores(self, value: Tensor) -> None:
        """Which keys each query sees, by the scores: (row, head, query, key)."""
        heads = self._heads(lambda kind: kind.endswith("_ratio"), value.shape[1])
        if heads:
            rows = self.axes["query"].at(_of_heads(value, heads), 2)
            # What hides a key is the least number of the model's dtype, or minus infinity.
            seen = rows > hidden_score(self.model.dtype) / 2
            if bool((seen == seen[:, :1]).all()):  # as a rule a mask is of all heads
                seen = seen[:, :1]
            weight = seen.float() / seen.sum(-1, keepdim=True).clamp(min=1)
            self._seen = self.axes["key"].at(weight, 3)
        self._plain("scores", value)

    def _plain(self, kind: str, value: Tensor) -> None:
        heads = self._heads(lambda other: other == kind, value.shape[1])
        if heads:
            taken = self._at(value, heads)
            if taken.untyped_storage().data_ptr() == value.untyped_storage().data_ptr():
                taken = taken.clone()  # the model's own, which others may change
            for what in self.wanted:
                if what.kind == kind:
                    self._keep(what, taken, heads, 1)

    def _at(self, value: Tensor, heads: Sequence[int]) -> Tensor:
        """(row, head, query, key) at the slots, NaN where a row lacks one; the value itself where that is all."""
        taken = self.axes["key"].at(self.axes["query"].at(_of_heads(value, heads), 2), 3)
        return taken.masked_fill(~self._there(taken), torch.nan) if self._lacks else taken

    @property
    def _lacks(self) -> bool:
        """Whether a row lacks a slot."""
        return not bool(self.axes["query"].there.all() and self.axes["key"].there.all())

    def _there(self, value: Tensor) -> Tensor:
        return self.axes["query"].along(value, 2) & self.axes["key"].along(value, 3)

    def _pattern(self, value: Tensor) -> None:
        """The pattern and what is made of it."""
        self._plain("pattern", value)
        for prefix in ("pattern_", "value_weighted_"):
            heads = self._heads(lambda kind, prefix=prefix: kind.startswith(prefix), value.shape[1])  # type: ignore[misc]
            if not heads:
                continue
            weights = self._at(value, heads)
            weights = weights.to(accumulating(weights))
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
        uniform = self._seen
        if uniform.shape[1] > 1:
            uniform = uniform[:, [ratio_heads.index(head) if head in ratio_heads else 0 for head in heads]]
        uniform = uniform.to(weights) if norms is None else uniform.to(weights) * norms[:, :, None]
        return sums / self._sums(uniform)

    def _sums(self, value: Tensor) -> Tensor:
        """(row, head, query name, key name), the sum of each block over the slots that are there."""
        there = torch.where(self._there(value), value, 0) if self._lacks else value
        return self.axes["query"].members.to(value).T @ there @ self.axes["key"].members.to(value)


def _of_heads(value: Tensor, heads: Sequence[int]) -> Tensor:
    """(row, head, ...) of some heads."""
    if list(heads) == list(range(value.shape[1])):
        return value
    return value.index_select(1, torch.tensor(heads, device="cpu").to(value.device))


def output_weight(model: StandardizedTransformer, layer: int, width: int) -> Tensor:
    """(head, width, hidden), the matrix of an output projection, by heads of so many numbers."""
    place = head_out_place(model, layer, f"head_out.{layer}")
    module = place.projection._module
    if type(module) is nn.Linear and type(module.weight) is nn.Parameter:
        return module.weight.detach().T.unflatten(0, (-1, width))
    if type(module) is Conv1D:
        return module.weight.detach().unflatten(0, (-1, width))
    rows = torch.eye(place.z.num_heads * width, dtype=model.dtype, device=model.device)[None]
    matrix = place.projection(rows) - place.projection(torch.zeros_like(rows[:, :1]))  # without its bias
    return matrix[0].detach().unflatten(0, (-1, width))


def check_values_add_up(model: StandardizedTransformer, layers: Sequence[int]) -> None:
    """Refuse layers in which a head does not give the sum of its values by its pattern; tried once on a small case.

    Raises:
        InterpError: one of them, such as one whose heads pass a gate or a norm of their own.
    """
    unknown = [layer for layer in dict.fromkeys(layers) if f"values of layer {layer} add up" not in verdicts_of(model)]
    if unknown:
        edits, model._edits = model._edits, []
        try:
            with hooks_aside(model._module):
                sites = [Site(kind, layer) for layer in unknown for kind in ("v", "pattern", "z")]
                _, cache = run_with_cache(model, sample_ids(model), sites=sites)
        finally:
            model._edits = edits
        for layer in unknown:
            z, pattern = cache[Site("z", layer)], cache[Site("pattern", layer)]
            values = cache[Site("v", layer)]
            values = values.repeat_interleave(pattern.shape[1] // values.shape[1], dim=1)
            fits = z.shape[2:] == (pattern.shape[1], values.shape[-1])
            found = fits and off_by(model, (pattern @ values).transpose(1, 2), z) is None
            verdicts_of(model)[f"values of layer {layer} add up"] = bool(found)
    for layer in layers:
        if not verdicts_of(model)[f"values of layer {layer} add up"]:
            raise InterpError(
                f"values of layer {layer}: what a head of {type(model._module).__name__} gives is not the sum of its "
                "values by its pattern (a gate or a norm stands between), so values have no weight of their own. "
                "Take pattern, v or head_out."
            )

"""One forward pass of a batch with edits, in which sites are read and their gradients taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations.prompt_batches import products
from interp.errors import InterpError
from interp.interventions.edits import Edit, Window
from interp.interventions.shapes import of_whole_layout
from interp.model.resolve import place_of
from interp.model.visits import Visit, run_visiting
from interp.sites import HEAD_KINDS, MAP_KINDS, Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["EditedPass", "GradientsOf", "Read"]

GradientsOf = Callable[[Tensor, list[int]], Tensor]
_LOGITS = Site("logits")


@dataclass(frozen=True)
class Read:
    """Where sites are read in a pass.

    Arguments:
        sites: what is read; one head of a site, or all.
        columns: (row, position), columns of what is fed; -1: there is none.
        lengths: (row,), tokens of each row, which are the keys that it has, those of a prefix included.
        before: (row,), columns of padding before them.
        prefix: tokens of a prefix, whose keys and values stand before those of what is fed.
    """

    sites: Sequence[Site]
    columns: Tensor
    lengths: Tensor
    before: Tensor
    prefix: int = 0

    @classmethod
    def nothing(cls, rows: int) -> Read:
        """Of so many rows nothing is read."""
        none = torch.zeros(rows, dtype=torch.long, device="cpu")
        return cls((), none[:, None], none, none)

    def gather(self, value: Tensor, kind: str) -> Tensor:
        """(row, position, [head,] number) of what is at a site; at `scores` and `pattern`, of a row's own keys."""
        columns = self.columns.to(value.device)
        missing = columns < 0
        rows = torch.arange(len(columns), device=value.device)[:, None]
        whole = of_whole_layout(kind, value, has_heads=kind in HEAD_KINDS)  # (row, column, [head,] number)
        found = whole[rows, columns.clamp(min=0) + (self.prefix if kind in ("k", "v") else 0)]
        if kind in MAP_KINDS:
            keys = torch.arange(int(self.lengths.max()), device=value.device)
            own = (self.before.to(value.device)[:, None] + keys).clamp(max=found.shape[-1] - 1)  # (row, key)
            found = found.gather(-1, own[:, None, None].expand(*found.shape[:-1], -1))
            beyond = keys >= self.lengths.to(value.device)[:, None]
            found = found.masked_fill(beyond[:, None, None], torch.nan)
        return found.masked_fill(missing.reshape(*missing.shape, *(1,) * (found.dim() - 2)), torch.nan)


@dataclass
class EditedPass:
    """A forward pass; after `run`, what it gave.

    Arguments:
        model: the model.
        window: what is fed.
        edits: the changes of the run, in the order listed; those that do not concern this pass are left out.
        read: what is read.
        logits: whether logits at the columns of `read` are given, if not for gradients.
        last_logits: whether logits of the last column are.
        keep_graph: whether what is given stays on the path of gradients.
    """

    model: StandardizedTransformer
    window: Window
    edits: Sequence[Edit]
    read: Read
    logits: bool = False
    last_logits: bool = False
    keep_graph: bool = False
    values: dict[Site, Tensor] = field(default_factory=dict)  # by site, as `Read.gather` gives it, with all heads
    gradients: dict[Site, Tensor] = field(default_factory=dict)
    metric: Tensor | None = None
    last: Tensor | None = None  # (row, vocabulary)
    _kept: dict[Site, Tensor] = field(default_factory=dict)
    _entering: dict[Site, Tensor] = field(default_factory=dict)

    def run(self, inputs: Mapping[str, Any], gradients_of: GradientsOf | None = None) -> Any:
        """Run the pass.

        Arguments:
            inputs: of the forward pass.
            gradients_of: from logits at the columns of `read`, and the examples of the rows, to a number for each row.

        Returns:
            What the model returned; None where the pass ended with the last site.
        """
        visits = self.visits(gradients_of is not None)
        needs_all = self.logits or self.last_logits or gradients_of is not None
        if not visits and not needs_all:
            return None
        if gradients_of is None:
            needs_graph = self.keep_graph and torch.is_grad_enabled()
            with torch.set_grad_enabled(needs_graph), products(self.model, inputs["input_ids"].numel()):
                return run_visiting(self.model, visits, stop=not needs_all, **inputs)
        with torch.enable_grad():
            output = run_visiting(self.model, visits, **inputs)
            self._differentiate(gradients_of)
        return output

    def visits(self, differentiates: bool = False) -> list[Visit]:
        """A visit for each site, in the order of the model: its edits as listed, then its reading."""
        edits: dict[Site, list[Edit]] = {}
        for edit in self.edits:
            if edit.concerns(self.window):
                edits.setdefault(edit.site, []).append(edit)
        passed_on = {_entered(edit) for edit in self.edits if edit.concerns(self.window)} - {None}
        wanted = {replace(site, head=None) for site in self.read.sites}
        if self.logits or self.last_logits or differentiates:
            wanted.add(_LOGITS)
        sites = self.model.in_order([*{*edits, *wanted, *(site for site in passed_on if site is not None)}])
        return [
            Visit(
                str(site),
                place_of(self.model, site),
                self._call(site, edits.get(site, []), site in wanted, site in passed_on, differentiates),
            )
            for site in sites
        ]

    def _call(
        self, site: Site, edits: list[Edit], is_read: bool, is_passed_on: bool, differentiates: bool
    ) -> Callable[[Tensor], Tensor | None]:
        def visit(live: Tensor) -> Tensor | None:
            new = live
            for edit in edits:
                entered = _entered(edit)
                entering = None if entered is None else self._entering[entered]
                new = edit.apply(self.model, new, self.window, entering)
            if is_passed_on:
                self._entering[site] = new.clone()
            if is_read and differentiates:
                new = live.clone() if new is live else new
                new = new if new.requires_grad else new.requires_grad_()
                self._kept[site] = new
            if is_read:
                self._take(site, new)
            return None if new is live else new

        return visit

    def _take(self, site: Site, value: Tensor) -> None:
        value = value if self.keep_graph else value.detach()
        if site == _LOGITS and self.last_logits:
            self.last = value[:, -1].clone()
        if site != _LOGITS or self.logits or site in self.read.sites:
            self.values[site] = self.read.gather(value, site.kind)

    def _differentiate(self, gradients_of: GradientsOf) -> None:
        """Take the gradients of the rows' metrics at all that was read. Rows have no part in each other's."""
        logits = self.read.gather(self._kept[_LOGITS], "logits")
        try:
            metric = gradients_of(logits, self.window.examples)
        except TypeError as error:
            raise InterpError(
                "gradients_of: expected a function of two arguments, logits (row, position, vocabulary) and the "
                f"numbers of their examples: {error}"
            ) from error
        rows = len(self.window.examples)
        if not isinstance(metric, Tensor) or metric.shape != (rows,):
            came = tuple(metric.shape) if isinstance(metric, Tensor) else type(metric).__name__
            raise InterpError(f"gradients_of: expected a tensor ({rows},), a number for each row, got {came}.")
        if not metric.requires_grad:
            raise InterpError("gradients_of: what it gave does not depend on the logits it was given (detached?).")
        wanted = list(dict.fromkeys(replace(site, head=None) for site in self.read.sites))
        found = torch.autograd.grad(
            metric.sum(), [self._kept[site] for site in wanted], allow_unused=True,
            create_graph=self.keep_graph,
        ) if wanted else ()  # fmt: skip
        for site, gradient in zip(wanted, found, strict=True):
            gradient = torch.zeros_like(self._kept[site]) if gradient is None else gradient
            self.gradients[site] = self.read.gather(gradient, site.kind)
        self.metric = metric if self.keep_graph else metric.detach()
        self._kept.clear()


def _entered(edit: Edit) -> Site | None:
    """The site that is needed to skip a layer: what entered it."""
    if edit.intervention.operation != "skip" or edit.site.kind != "resid_post":
        return None
    return Site("resid_pre", edit.site.layer)

"""The vocabulary goes by in chunks, once, and a few numbers a row are kept."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from interp.readout.groups import TokenGroups
from interp.readout.members import Members, Places
from interp.readout.order import BLOCK, Ranks, TopTokens, keyed_ids, keyed_values
from interp.readout.plan import Plan, Workspace
from interp.readout.reduced import Reduced
from interp.readout.sums import Divergence, Masses, Softmax

__all__ = ["Logits", "stream"]


class Logits(Protocol):
    """Where the logits of a block of rows come from."""

    @property
    def rows(self) -> tuple[int, int]:
        """Rows, and layers of each."""

    def of(self, ids: Tensor) -> Tensor:
        """(row, layer, n) float32, the logits of `ids` (row, n)."""

    def write(self, start: int, stop: int, out: Tensor) -> None:
        """Write the logits of the tokens from `start` to `stop` into `out` (row * layer, stop - start) float32."""


def stream(
    logits: Logits,
    groups: TokenGroups,
    top_k: int,
    plan: Plan,
    workspace: Workspace,
    *,
    places: tuple[Places, int] | None = None,
    reference: int | Logits | None = None,
    masses: Tensor | None = None,
) -> tuple[Reduced, Tensor]:
    """Read a block of rows.

    Arguments:
        logits: where the logits come from.
        groups: token groups of the rows, on their device.
        top_k: how many top tokens are kept.
        plan: how the vocabulary is divided.
        workspace: the buffers.
        places: where members of the groups lie in the chunks of which block; None: `logits.of` gives the very numbers
            that `logits.write` gives, so that there is nothing to write over.
        reference: what `kl` compares with: one of the layers, or other logits of one layer; None: no `kl`.
        masses: (sets, vocabulary) bool.

    Returns:
        The reduced rows, (row, layer, ...); and (row, layer) bool, those with NaN or infinity, whose numbers mean
        nothing.
    """
    members = Members(groups, logits.of(groups.ids.flatten(1)))
    readings = _Readings(logits.rows, members, top_k, plan, workspace, reference, masses)
    for index, start in enumerate(plan.starts):
        chunk = _read(logits, plan, start, workspace, "logits")
        if places is not None:
            members.write(chunk, places[0].of(places[1], index, start))
        given = None if reference is None or isinstance(reference, int) else reference
        other = None if given is None else _read(given, plan, start, workspace, "reference")
        readings.add(index, chunk, other)
    return readings.result()


def _read(logits: Logits, plan: Plan, start: int, workspace: Workspace, name: str) -> Tensor:
    """A chunk of logits, (row, layer, tokens) float32, filled up with -inf to whole blocks."""
    rows, layers = logits.rows
    count = min(plan.tokens, plan.vocabulary - start)
    chunk = workspace.get(name, rows * layers, -(-count // BLOCK) * BLOCK)
    logits.write(start, start + count, chunk[:, :count])
    chunk[:, count:] = -torch.inf
    return chunk.view(rows, layers, chunk.shape[1])


class _Readings:
    """What is kept of a block of rows, while the vocabulary goes by."""

    def __init__(
        self,
        rows: tuple[int, int],
        members: Members,
        top_k: int,
        plan: Plan,
        workspace: Workspace,
        reference: int | Logits | None,
        masses: Tensor | None,
    ) -> None:
        chunks, device = len(plan.starts), workspace.device
        self.rows, self.members, self.plan, self.workspace = rows, members, plan, workspace
        self.layer = reference if isinstance(reference, int) else None
        self.top, self.ranks = TopTokens(top_k), Ranks(members.best.flatten(0, 1))
        self.sums = Softmax(chunks, *rows, device)
        self.divergence = None if reference is None else Divergence(chunks, *rows, device)
        self.reference = self.sums if self.layer is not None else Softmax(chunks, rows[0], 1, device)
        self.masses = None if masses is None else Masses(masses, chunks, *rows)

    def add(self, index: int, chunk: Tensor, other: Tensor | None) -> None:
        """See a chunk.

        Arguments:
            index: which.
            chunk: (row, layer, tokens) logits.
            other: (row, 1, tokens), those of a reference that is none of the layers.
        """
        rows, layers, tokens = chunk.shape
        start = self.plan.starts[index]
        blocks = chunk.view(rows * layers, tokens // BLOCK, BLOCK)
        peaks = torch.amax(blocks.view(-1, BLOCK), dim=1).view(blocks.shape[:2])
        self.top.add(blocks, peaks, start)
        self.sums.begin(index, peaks.amax(dim=1).view(rows, layers))
        if other is not None:
            self.reference.begin(index, other.amax(dim=-1))
        self.ranks.begin(start, blocks.shape[1])
        for at in range(0, rows, self.plan.summed):  # some rows at a time, whose numbers are near when used again
            some = slice(at, min(at + self.plan.summed, rows))
            flat = slice(some.start * layers, some.stop * layers)
            self.ranks.add(flat, blocks[flat], self.workspace.get("scratch", *blocks[flat].shape))
            self._sum((index, some), start, chunk[some], None if other is None else other[some])
        self.ranks.end(blocks)

    def _sum(self, where: tuple[int, slice], start: int, chunk: Tensor, other: Tensor | None) -> None:
        y, weights, scratch = (self.workspace.get(name, *chunk.shape) for name in ("y", "weights", "scratch"))
        self.sums.add(where, chunk, (y, weights, scratch))
        if self.masses is not None:
            self.masses.add(where, weights, start)
        if self.divergence is None:
            return
        if other is None:
            assert self.layer is not None
            given = weights[:, self.layer, None]
        else:
            room, given = (self.workspace.get(name, *other.shape) for name in ("reference y", "reference weights"))
            self.reference.add(where, other, (room, given, scratch[:, :1]))
        self.divergence.add(where, given, y, scratch)

    def result(self) -> tuple[Reduced, Tensor]:
        """The reduced rows, and which are broken."""
        rows, layers = self.rows
        broken, kl = self.sums.broken, None
        if self.divergence is not None:
            kl = self.divergence.result(self.reference, self.layer or 0, self.sums).float()
            broken = broken | self.reference.broken if self.layer is None else broken
        assert self.top.keys is not None  # the vocabulary is not empty
        keys = self.top.keys.view(rows, layers, self.top.k)
        log_normalizer = self.sums.log_normalizer[..., None]
        log_prob, ranks = self.members.log_sum_exp() - log_normalizer, self.ranks.counts.view(self.members.best.shape)
        return Reduced(
            log_prob=log_prob.masked_fill(self.members.empty, torch.nan).float(),
            rank=ranks.masked_fill(self.members.empty, -1).to(torch.int32),
            top_ids=keyed_ids(keys).to(torch.int32),
            top_log_prob=(keyed_values(keys).double() - log_normalizer).float(),
            entropy=self.sums.entropy.float(),
            kl=kl,
            log_mass=None if self.masses is None else self.masses.result(self.sums).float(),
        ), broken

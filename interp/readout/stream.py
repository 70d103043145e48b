"""One pass over the vocabulary in chunks, reducing each row of logits in buffers of fixed size.

Shapes: R rows of a block, L layers of each (all of a row are read at once); C tokens of a chunk, filled up to whole
blocks, N blocks of `BLOCK` tokens in it; V tokens of the vocabulary; G groups of W members at most, the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from interp.batching import buffer_elements
from interp.readout.groups import Reduced, TokenGroups
from interp.readout.ranks import BLOCK, LOWEST, Ranks, TopTokens, keyed_ids, keyed_values, keys_of
from interp.readout.softmax import Divergence, Masses, Softmax

__all__ = ["Logits", "Members", "Places", "Plan", "Workspace", "stream"]


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
    members = Members(groups, logits.of(groups.ids.flatten(1)))  # of (R, GW) ids: (R, L, GW)
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
    chunk = workspace.get(name, rows * layers, -(-count // BLOCK) * BLOCK)  # (RL, C)
    logits.write(start, start + count, chunk[:, :count])
    chunk[:, count:] = -torch.inf
    return chunk.view(rows, layers, chunk.shape[1])  # (R, L, C)


class _Readings:
    """The numbers kept of a block of rows, updated with every chunk of the vocabulary."""

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
        self.top, self.ranks = TopTokens(top_k), Ranks(members.best.flatten(0, 1))  # (RL, G)
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
        blocks = chunk.view(rows * layers, tokens // BLOCK, BLOCK)  # (RL, N, BLOCK)
        peaks = torch.amax(blocks.view(-1, BLOCK), dim=1).view(blocks.shape[:2])  # (RL, N)
        self.top.add(blocks, peaks, start)
        self.sums.begin(index, peaks.amax(dim=1).view(rows, layers))  # (R, L)
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
            given = weights[:, self.layer, None]  # (R, 1, C)
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
        keys = self.top.keys.view(rows, layers, self.top.k)  # (R, L, k)
        log_normalizer = self.sums.log_normalizer[..., None]  # (R, L, 1)
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


class Members:
    """The tokens of the groups of some rows, with their logits."""

    def __init__(self, groups: TokenGroups, logits: Tensor) -> None:
        """Arguments: groups of the rows; logits (row, layer, groups * width) float32 of `groups.ids`."""
        self.groups = groups
        self.logits = logits.gather(-1, _first_of_each(groups)[:, None].expand(logits.shape))  # (R, L, GW)
        self.shape = (*logits.shape[:2], *groups.ids.shape[1:])  # (row, layer, group, width)
        keys = keys_of(self.logits, groups.ids.flatten(1)[:, None]).view(self.shape)  # (R, L, G, W)
        self.best = keys.masked_fill(~groups.valid[:, None], LOWEST).amax(dim=-1)  # (row, layer, group)

    @property
    def empty(self) -> Tensor:
        """(row, 1, group) bool: groups without tokens."""
        return ~self.groups.valid.any(dim=-1)[:, None]

    def log_sum_exp(self) -> Tensor:
        """(row, layer, group) float64, log of the summed exponentials of each group's logits; -inf: an empty group."""
        logits = self.logits.view(self.shape).double()  # (R, L, G, W)
        return logits.masked_fill(~self.groups.valid[:, None], -torch.inf).logsumexp(dim=-1)

    def write(self, chunk: Tensor, places: tuple[Tensor, Tensor, Tensor]) -> None:
        """Write the logits over those of a chunk.

        Arguments:
            chunk: (row, layer, tokens).
            places: of the members in the chunk: the row, the place in the chunk, the place among the row's members.
        """
        row, place, member = places
        if len(row):
            chunk[row, :, place] = self.logits[row, :, member]


class Places:
    """Where in the chunks the members lie: found for all blocks of rows and all chunks at once.

    On an accelerator, a question about the groups within the loop over the chunks would make it wait.
    """

    def __init__(self, groups: TokenGroups, block: int, starts: Sequence[int], vocabulary: int) -> None:
        """Arguments: block, how many rows are read at once; starts, the first token of each chunk."""
        rows, width = groups.ids.shape[0], groups.ids.shape[1] * groups.ids.shape[2]
        ids = groups.ids.masked_fill(~groups.valid, vocabulary).flatten()  # (row of all blocks x GW,), as are these:
        row = torch.arange(rows, device=ids.device).repeat_interleave(width)
        keys, order = ((row // block) * (vocabulary + 1) + ids).sort()
        blocks = range(0, max(rows, 1), block)
        bounds = [index * (vocabulary + 1) + start for index in range(len(blocks)) for start in (*starts, vocabulary)]
        found = torch.searchsorted(keys, torch.tensor(bounds, dtype=keys.dtype, device=keys.device)).tolist()
        self._bounds = [found[i * (len(starts) + 1) : (i + 1) * (len(starts) + 1)] for i in range(len(blocks))]
        self._row, self._ids, self._member = row[order] % block, ids[order], order % max(width, 1)

    def to(self, device: torch.device) -> Places:
        """The same places on another device."""
        self._row, self._ids, self._member = (x.to(device) for x in (self._row, self._ids, self._member))
        return self

    def of(self, block: int, chunk: int, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """What `Members.write` takes, for one chunk of one block of rows; `start` is the chunk's first token."""
        found = slice(self._bounds[block][chunk], self._bounds[block][chunk + 1])
        return self._row[found], self._ids[found] - start, self._member[found]


def _first_of_each(groups: TokenGroups) -> Tensor:
    """(row, groups * width): for each member the place where the same token stands first among its row's members.

    Two products with the same row of the head may differ in their last bit.
    """
    ids = groups.ids.flatten(1)
    ordered, order = ids.sort(dim=1, stable=True)
    start = torch.ones_like(ordered, dtype=torch.bool)
    start[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    first = torch.where(start, places, 0).cummax(dim=1).values if ids.shape[1] else places
    return torch.empty_like(order).scatter_(1, order, order.gather(1, first))


# Tokens in a chunk at most; `interp.batching` says how many numbers a buffer of logits holds.
CPU_TOKENS, ACCELERATOR_TOKENS = 1 << 12, 1 << 14
# Numbers in the buffers of the sums, which go over the logits several times: 1 MiB on a CPU, for its nearer cache.
CPU_SUMMED = 1 << 18


@dataclass(frozen=True)
class Plan:
    """How rows and vocabulary are divided.

    Arguments:
        rows: rows that are read at once, of all layers.
        summed: rows of these that are summed at once.
        tokens: tokens in a chunk, a multiple of `BLOCK`.
        vocabulary: tokens in all.
    """

    rows: int
    summed: int
    tokens: int
    vocabulary: int

    @classmethod
    def of(cls, layers: int, vocabulary: int, device: torch.device) -> Plan:
        """The division that keeps the buffers small.

        Arguments:
            layers: how many layers are read of each row, all at once.
            vocabulary: number of logits.
            device: where.
        """
        elements = buffer_elements(device)
        most, summed = (CPU_TOKENS, CPU_SUMMED) if device.type == "cpu" else (ACCELERATOR_TOKENS, elements)
        most = min(most, max(elements // layers, BLOCK))  # all layers of one row at the least
        chunks = -(-vocabulary // most)
        tokens = -(-vocabulary // (chunks * BLOCK)) * BLOCK
        return cls(max(1, elements // (layers * tokens)), max(1, summed // (layers * tokens)), tokens, vocabulary)

    @property
    def starts(self) -> range:
        """The first token of each chunk."""
        return range(0, self.vocabulary, self.tokens)


class Workspace:
    """Buffers that are used again for every chunk."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of a shape, with whatever is in it."""
        count = torch.Size(shape).numel()
        held = self._held.get((name, dtype))
        if held is None or held.numel() < count:
            held = self._held[name, dtype] = torch.empty(count, dtype=dtype, device=self.device)
        return held[:count].view(shape)

"""The vocabulary goes by in chunks, once, and a few numbers a row are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from interp.readout.groups import TokenGroups
from interp.readout.members import Members, Places
from interp.readout.order import BLOCK, Ranks, TopTokens, keyed_ids, keyed_values
from interp.readout.reduced import Reduced
from interp.readout.sums import Divergence, Masses, Softmax

__all__ = ["Logits", "Plan", "Workspace", "stream"]

# Numbers in one of the few buffers, and tokens in a chunk at most. On a CPU a buffer of 8 MiB stays in the cache, and
# a matrix product of 256 rows is as fast as a large one. An accelerator wants long kernels.
CPU_ELEMENTS, CPU_TOKENS = 1 << 21, 8000
ACCELERATOR_ELEMENTS, ACCELERATOR_TOKENS = 1 << 26, 16384


class Logits(Protocol):
    """Where the logits of a block of rows come from."""

    @property
    def rows(self) -> tuple[int, int]:
        """Layers, and rows of each layer."""

    def of(self, ids: Tensor) -> Tensor:
        """(layer, row, n) float32, the logits of `ids` (row, n)."""

    def write(self, start: int, stop: int, out: Tensor) -> None:
        """Write the logits of the tokens from `start` to `stop` into `out` (layer * row, stop - start) float32."""


@dataclass(frozen=True)
class Plan:
    """How rows and vocabulary are divided.

    Arguments:
        rows: rows of a layer that are read at once.
        tokens: tokens in a chunk, a multiple of `BLOCK`.
        vocabulary: tokens in all.
    """

    rows: int
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
        on_cpu = device.type == "cpu"
        elements, most = (CPU_ELEMENTS, CPU_TOKENS) if on_cpu else (ACCELERATOR_ELEMENTS, ACCELERATOR_TOKENS)
        most = min(most, max(elements // max(layers, 1), BLOCK))  # one row of each layer at the least
        chunks = -(-vocabulary // most)
        tokens = -(-vocabulary // (max(chunks, 1) * BLOCK)) * BLOCK
        return cls(max(1, elements // max(layers * tokens, 1)), tokens, vocabulary)

    @property
    def starts(self) -> range:
        """The first token of each chunk."""
        return range(0, self.vocabulary, self.tokens)


class Workspace:
    """Buffers that are used again for every chunk."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, rows: int, tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(rows, tokens), with whatever is in it."""
        held = self._held.get((name, dtype))
        if held is None or held.numel() < rows * tokens:
            held = self._held[name, dtype] = torch.empty(rows * tokens, dtype=dtype, device=self.device)
        return held[: rows * tokens].view(rows, tokens)


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
        The reduced rows, (layer, row, ...); and (layer, row) bool, those with NaN or infinity, whose numbers mean
        nothing.
    """
    layers, rows = logits.rows
    members = Members(groups, logits.of(groups.ids.flatten(1)))
    top, ranks, sums = TopTokens(top_k), Ranks(members.best.flatten(0, 1)), Softmax()
    other_sums, divergence = Softmax(), Divergence()
    sets = None if masses is None else Masses(masses)
    for index, start in enumerate(plan.starts):
        stop = min(start + plan.tokens, plan.vocabulary)
        chunk = _read(logits, start, stop, workspace, "logits")
        weights, scratch = (workspace.get(name, *chunk.shape) for name in ("weights", "scratch"))
        tokens = chunk.shape[1]
        by_layer = [buffer.view(layers, rows, tokens) for buffer in (chunk, weights, scratch)]
        if places is not None:
            members.write(by_layer[0], places[0].of(places[1], index, start, tokens))
        blocks = chunk.view(layers * rows, tokens // BLOCK, BLOCK)
        peaks = chunk.view(-1, BLOCK).amax(dim=1).view(blocks.shape[:2])
        top.add(blocks, peaks, start)
        ranks.add(blocks, start, scratch.view(blocks.shape))
        sums.add(by_layer[0], peaks.amax(dim=1).view(layers, rows), *by_layer[1:])
        if sets is not None:
            sets.add(by_layer[1], start)
        if isinstance(reference, int):
            divergence.add(by_layer[1][reference], by_layer[0], by_layer[2])
        elif reference is not None:
            other = _read(reference, start, stop, workspace, "reference")
            # Its weights need room of their own only until the products with them are summed.
            other_sums.add(other[None], other.amax(dim=1)[None], weights[None, :rows], scratch[None, :rows])
            divergence.add(weights[:rows], by_layer[0], by_layer[2])
    broken, kl = sums.broken, None
    if isinstance(reference, int):
        kl = divergence.result(sums, reference, sums)
    elif reference is not None:
        kl = divergence.result(other_sums, 0, sums)
        broken = broken | other_sums.broken
    assert top.keys is not None  # the vocabulary is not empty
    keys = top.keys.view(layers, rows, top_k)
    log_normalizer = sums.log_normalizer[..., None]
    log_prob = members.log_sum_exp() - log_normalizer
    return Reduced(
        log_prob=log_prob.masked_fill(members.empty, torch.nan).float(),
        rank=ranks.counts.view(members.best.shape).masked_fill(members.empty, -1).to(torch.int32),
        top_ids=keyed_ids(keys).to(torch.int32),
        top_log_prob=(keyed_values(keys).double() - log_normalizer).float(),
        entropy=sums.entropy.float(),
        kl=None if kl is None else kl.float(),
        log_mass=None if sets is None else sets.result(sums).float(),
    ), broken


def _read(logits: Logits, start: int, stop: int, workspace: Workspace, name: str) -> Tensor:
    """A chunk of logits, (rows, tokens) float32, filled up with -inf to whole blocks."""
    layers, rows = logits.rows
    chunk = workspace.get(name, layers * rows, -(-(stop - start) // BLOCK) * BLOCK)
    logits.write(start, stop, chunk[:, : stop - start])
    chunk[:, stop - start :] = -torch.inf
    return chunk

"""Softmax, entropy and divergences over the vocabulary, from sums collected chunk by chunk.

Of each chunk, with y = (logit - the chunk's largest logit) in bits: the sum of 2^y, that of y 2^y, and the sum of y
with the exponentials of a reference. Within a chunk they are summed in float32, between chunks in float64. Powers of
two, because `exp2` is up to five times as fast as `exp` on a CPU.

Rows have two axes, (row, layer).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from interp.errors import InterpError

__all__ = ["Divergence", "Masses", "Softmax", "Where", "check_finite", "kl_divergence", "log_probabilities"]


# Bits in a nat: as float32, because that is what the logits are multiplied by, and then exactly.
BITS = float(torch.tensor(math.log2(math.e), dtype=torch.float32, device="cpu"))
_LOWEST = torch.finfo(torch.float32).min

Where = tuple[int, slice]
"""Which chunk, and which rows."""


class Softmax:
    """Normalizer and entropy of some rows. Chunks are added first, then the properties read."""

    def __init__(self, chunks: int, rows: int, layers: int, device: torch.device) -> None:
        # (chunks, row, layer): the largest logits in bits, the sums of 2^y, the sums of y 2^y
        self._peaks, self._totals, self._moments = torch.zeros(
            3, chunks, rows, layers, device=device, dtype=torch.float32
        )

    def begin(self, chunk: int, peaks: Tensor) -> None:
        """Begin a chunk, of which `peaks` (row, layer) are the largest logits."""
        # Where all is -inf, a number that can be subtracted.
        torch.mul(peaks, BITS, out=self._peaks[chunk]).clamp_min_(_LOWEST)

    def add(self, where: Where, logits: Tensor, room: tuple[Tensor, Tensor, Tensor]) -> None:
        """See a chunk of some rows.

        Arguments:
            where: which chunk, which rows.
            logits: (row, layer, tokens) float32.
            room: three tensors of the shape of `logits`. The first becomes y, the second 2^y.
        """
        y, weights, scratch = room
        torch.add(-self._peaks[where][..., None], logits, alpha=BITS, out=y)  # one rounding: times and plus at once
        torch.exp2(y, out=weights)
        torch.sum(weights, dim=-1, out=self._totals[where])
        _product_sum(weights, y, scratch, out=self._moments[where])

    @cached_property
    def totals(self) -> Tensor:
        """(chunks, row, layer) float64, sums of 2^y within the chunks."""
        return self._totals.double()

    @cached_property
    def peaks(self) -> Tensor:
        """(chunks, row, layer) float64, bits, the largest logit in each chunk."""
        return self._peaks.double()

    @cached_property
    def peak(self) -> Tensor:
        """(row, layer) float64, bits, the largest logit."""
        return self.peaks.amax(dim=0)

    @cached_property
    def shifts(self) -> Tensor:
        """(chunks, row, layer) float64, bits, by how much the peaks of the chunks are above that of the row."""
        return self.peaks - self.peak

    @cached_property
    def total(self) -> Tensor:
        """(row, layer) float64, the sum of 2^(logit - peak)."""
        return (self.shifts.exp2() * self.totals).sum(dim=0)

    @cached_property
    def mean(self) -> Tensor:
        """(row, layer) float64, bits, the mean of logit - peak under the softmax."""
        terms = self.shifts.exp2() * (self._moments.double() + self.shifts * self.totals)
        return terms.sum(dim=0) / self.total

    @property
    def log_normalizer(self) -> Tensor:
        """(row, layer) float64, nats: a logit less this is a log-probability."""
        return (self.peak + self.total.log2()) / BITS

    @property
    def entropy(self) -> Tensor:
        """(row, layer) float64, nats."""
        return (self.total.log2() - self.mean) / BITS

    @property
    def broken(self) -> Tensor:
        """(row, layer) bool: rows with NaN or +infinity, or with nothing finite."""
        return ~self.peak.isfinite() | ~(self.total > 0)


class Divergence:
    """KL(reference || row) of rows of several layers to one reference row for all layers."""

    def __init__(self, chunks: int, rows: int, layers: int, device: torch.device) -> None:
        self._moments = torch.zeros(chunks, rows, layers, device=device, dtype=torch.float32)

    def add(self, where: Where, reference_weights: Tensor, y: Tensor, scratch: Tensor) -> None:
        """See a chunk of some rows, after `Softmax.add` has made of it what is needed here.

        Arguments:
            where: which chunk, which rows.
            reference_weights: (row, 1, tokens), 2^y of the reference.
            y: (row, layer, tokens), of the rows.
            scratch: room of that shape, written over.
        """
        _product_sum(reference_weights, y, scratch, out=self._moments[where])

    def result(self, reference: Softmax, layer: int, rows: Softmax) -> Tensor:
        """(row, layer) float64, nats.

        Arguments:
            reference: the reference is one layer of these sums.
            layer: which layer.
            rows: the sums of the rows.
        """
        total, mean = reference.total[:, layer, None], reference.mean[:, layer, None]  # (row, 1)
        weights, totals = reference.shifts.exp2()[..., layer, None], reference.totals[..., layer, None]
        # Where the reference has no weight, what the row has there counts nothing, be it infinitely far down.
        cross = (weights * (self._moments.double() + rows.shifts * totals)).nansum(dim=0) / total
        divergence = (mean - cross) + (rows.total.log2() - total.log2())
        return divergence.clamp_min(0.0) / BITS  # never negative, but for the rounding of the sums


class Masses:
    """Probability of sets of tokens that all rows share."""

    def __init__(self, sets: Tensor, chunks: int, rows: int, layers: int) -> None:
        """Arguments: sets (sets, vocabulary) bool, on the device of the rows."""
        self.sets = sets
        self._masses = torch.zeros(chunks, rows, layers, len(sets), device=sets.device, dtype=torch.float32)

    def add(self, where: Where, weights: Tensor, start: int) -> None:
        """See a chunk of some rows: weights (row, layer, tokens), 2^y, of the tokens from `start` on."""
        chunk = self.sets[:, start : start + weights.shape[-1]]
        self._masses[where] = weights[..., : chunk.shape[1]] @ chunk.T.to(weights.dtype)

    def result(self, rows: Softmax) -> Tensor:
        """(row, layer, sets) float64, log-probabilities in nats; NaN for an empty set."""
        mass = (rows.shifts.exp2()[..., None] * self._masses.double()).sum(dim=0)
        log_mass = mass.log() - rows.total.log()[..., None]
        return log_mass.masked_fill(~self.sets.any(dim=1), torch.nan)


def _product_sum(left: Tensor, right: Tensor, scratch: Tensor, *, out: Tensor) -> None:
    """Sums of products over the last axis, in which 0 times infinity is 0."""
    torch.nansum(torch.mul(left, right, out=scratch), dim=-1, out=out)


# Numbers in a temporary float32 copy of a chunk of rows: 16 MiB.
CHUNK_ELEMENTS = 1 << 22


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax in float32.

    Arguments:
        logits: (..., vocabulary), any float dtype.

    Returns:
        (..., vocabulary) float32, nats.

    Raises:
        InterpError: a row holds NaN or +infinity, or nothing finite.
    """
    result = torch.log_softmax(logits.float(), dim=-1)
    # One number a row tells: a row with NaN, +inf or only -inf is NaN everywhere, its maximum too.
    check_finite(result.amax(dim=-1).isnan())
    return result


def check_finite(broken: Tensor) -> None:
    """Whether logits are numbers.

    Arguments:
        broken: bool, one entry a row: whether it holds NaN or +infinity, or nothing finite.

    Raises:
        InterpError: some are broken.
    """
    if bool(broken.any()):
        raise InterpError(
            f"{int(broken.sum())} of {broken.numel()} rows of logits hold NaN or infinity: the model's numbers "
            "overflowed. float16 ends at 65504, which large residual streams exceed; load the model as bfloat16 "
            "or float32."
        )


def kl_divergence(reference_log_probs: Tensor, log_probs: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(reference || other), row by row.

    Arguments:
        reference_log_probs: (rows, vocabulary), nats.
        log_probs: (rows, vocabulary), nats.

    Returns:
        (rows,) float32, nats. Infinite where the reference gives probability to a token that the other excludes.
    """
    parts = [
        _kl(reference_log_probs[chunk].float(), log_probs[chunk].float())
        for chunk in _chunks(reference_log_probs.shape[0], reference_log_probs.shape[1])
    ]
    return torch.cat(parts)


def _chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Slices of rows whose float32 copy has at most `CHUNK_ELEMENTS` numbers; one empty slice for no rows."""
    step = max(1, CHUNK_ELEMENTS // max(vocabulary, 1))
    for start in range(0, max(rows, 1), step):
        yield slice(start, start + step)


def _kl(reference: Tensor, other: Tensor) -> Tensor:
    probability = reference.exp()
    terms = torch.where(probability > 0, probability * (reference - other), 0.0)
    return terms.sum(dim=-1).clamp_min(0.0)  # never negative, but for the rounding of the sum

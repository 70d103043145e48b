"""From logits to the few numbers that a lens keeps, so that no (example, layer, vocabulary) tensor need exist.

Everything is accumulated in float32, whatever the dtype of the logits: in bfloat16 a sum over a vocabulary is wrong in
its third digit. Probabilities are kept as natural logarithms (nats).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError

__all__ = ["Groups", "Reduced", "TokenGroups", "kl_divergence", "log_probabilities", "reduce_logits"]

Groups = Sequence[Sequence[Sequence[int]]]
"""Per row, per group: token ids. Every row has the same number of groups; a group may be empty."""

# Numbers in the temporary float32 and int64 copies of a chunk of rows: 16 and 32 MiB.
CHUNK_ELEMENTS = 1 << 22
_LOWEST = torch.iinfo(torch.int64).min


@dataclass(frozen=True)
class TokenGroups:
    """Groups of token ids as index tensors, made once and used for every layer.

    Arguments:
        ids: (rows, groups, width) int64, padded with 0.
        valid: (rows, groups, width) bool, true once for each distinct token of the group.
    """

    ids: Tensor
    valid: Tensor

    @classmethod
    def pad(cls, groups: Groups, vocab_size: int, device: torch.device | str = "cpu") -> TokenGroups:
        """Pad lists of token ids into index tensors; repeated tokens of a group count once.

        Arguments:
            groups: per row, per group: token ids.
            vocab_size: number of entries of the logits that the ids index.
            device: where the index tensors are needed.

        Raises:
            InterpError: rows with different numbers of groups, or an id outside the vocabulary.
        """
        counts = sorted({len(row) for row in groups})
        if len(counts) > 1:
            raise InterpError(
                f"expected the same number of groups in every row, got rows with {counts} groups. "
                "Where a row has no tokens for a group, give it an empty list there."
            )
        shape = (len(groups), counts[0] if counts else 0)
        cells = list(chain.from_iterable(groups))
        lengths = np.fromiter(map(len, cells), dtype=np.int64, count=len(cells))
        flat = np.fromiter(chain.from_iterable(cells), dtype=np.int64, count=int(lengths.sum()))
        if flat.size and not (flat.min() >= 0 and flat.max() < vocab_size):
            bad = int(flat.min() if flat.min() < 0 else flat.max())
            raise InterpError(
                f"token id {bad} is outside the vocabulary of the model (0 to {vocab_size - 1}). "
                "Were the groups made with another model's tokenizer?"
            )
        width = max(int(lengths.max(initial=0)), 1)
        filled = np.arange(width) < lengths[:, None]  # (cells, width)
        ids = np.full(filled.shape, vocab_size, dtype=np.int64)  # above every id: padding sorts to the end
        ids[filled] = flat
        ids.sort(axis=1)
        valid = ids < vocab_size
        valid[:, 1:] &= ids[:, 1:] != ids[:, :-1]
        ids[~valid] = 0
        return cls(
            torch.from_numpy(ids.reshape(*shape, width)).to(device),
            torch.from_numpy(valid.reshape(*shape, width)).to(device),
        )

    def __len__(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> TokenGroups:
        """The same groups on another device."""
        return TokenGroups(self.ids.to(device), self.valid.to(device))

    def rows(self, rows: slice | Tensor) -> TokenGroups:
        """The groups of some rows."""
        return TokenGroups(self.ids[rows], self.valid[rows])


@dataclass(frozen=True)
class Reduced:
    """What is kept of the logits of some rows. All logarithms are natural.

    Arguments:
        log_prob: (rows, groups) float32, log of the summed probability of a group's distinct tokens; NaN where the
            group is empty.
        rank: (rows, groups) int32, how many tokens stand above the group's best one; -1 where the group is empty.
            Equal logits stand in the order of their ids, here and in `top_ids`: rank 0 says that `top_ids[0]` is in
            the group.
        top_ids: (rows, k) int32, the most probable tokens, best first.
        top_log_prob: (rows, k) float32, their log-probabilities.
        entropy: (rows,) float32, in nats.
        kl: (rows,) float32, in nats: KL(reference || row); None where no reference was given.
    """

    log_prob: Tensor
    rank: Tensor
    top_ids: Tensor
    top_log_prob: Tensor
    entropy: Tensor
    kl: Tensor | None = None


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
    broken = result.amax(dim=-1).isnan()
    if bool(broken.any()):
        raise InterpError(
            f"{int(broken.sum())} of {broken.numel()} rows of logits hold NaN or infinity: the model's numbers "
            "overflowed. float16 ends at 65504, which large residual streams exceed; load the model as bfloat16 "
            "or float32."
        )
    return result


def reduce_logits(
    logits: Tensor, groups: TokenGroups | Groups, top_k: int, *, kl_reference: Tensor | None = None
) -> Reduced:
    """Reduce rows of logits to group log-probabilities, ranks, top tokens and entropy.

    Arguments:
        logits: (rows, vocabulary), any float dtype; on any device, where the work is done.
        groups: per row, per group: token ids; or the same as `TokenGroups`, on the device of `logits`.
        top_k: number of top tokens kept, at least 1.
        kl_reference: (rows, vocabulary) log-probabilities p (nats); then `kl` is KL(p || row).

    Returns:
        The reduced rows, on the device of `logits`.

    Raises:
        InterpError: shapes that do not fit, an id outside the vocabulary, `top_k` out of range, logits with NaN or
            infinity.
    """
    if logits.dim() != 2:
        raise InterpError(f"expected logits (rows, vocabulary), got shape {tuple(logits.shape)}.")
    rows, vocabulary = logits.shape
    if not 1 <= top_k <= vocabulary:
        raise InterpError(f"top_k: expected 1 to {vocabulary} (the vocabulary), got {top_k}.")
    if not isinstance(groups, TokenGroups):
        groups = TokenGroups.pad(groups, vocabulary, logits.device)
    if len(groups) != rows:
        raise InterpError(f"expected groups for {rows} rows (one entry a row of logits), got {len(groups)}.")
    if kl_reference is not None and kl_reference.shape != logits.shape:
        raise InterpError(
            f"kl_reference: expected shape {tuple(logits.shape)}, that of the logits, got {tuple(kl_reference.shape)}."
        )
    parts = [
        _reduce(logits[chunk], groups.rows(chunk), top_k, None if kl_reference is None else kl_reference[chunk])
        for chunk in _chunks(rows, vocabulary)
    ]
    return Reduced(
        log_prob=torch.cat([part.log_prob for part in parts]),
        rank=torch.cat([part.rank for part in parts]),
        top_ids=torch.cat([part.top_ids for part in parts]),
        top_log_prob=torch.cat([part.top_log_prob for part in parts]),
        entropy=torch.cat([part.entropy for part in parts]),
        kl=None if kl_reference is None else torch.cat([part.kl for part in parts if part.kl is not None]),
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


def _reduce(logits: Tensor, groups: TokenGroups, top_k: int, kl_reference: Tensor | None) -> Reduced:
    rows = logits.shape[0]
    flat = groups.ids.flatten(1)  # (rows, groups * width)
    log_probs = log_probabilities(logits)  # (rows, vocabulary)

    members = log_probs.gather(1, flat).view(groups.ids.shape).masked_fill(~groups.valid, -torch.inf)
    empty = ~groups.valid.any(dim=-1)  # (rows, groups)
    log_prob = torch.logsumexp(members, dim=-1).masked_fill(empty, torch.nan)

    keys = _order_keys(logits)  # (rows, vocabulary)
    best = keys.gather(1, flat).view(groups.ids.shape).masked_fill(~groups.valid, _LOWEST).amax(dim=-1)
    rank = torch.empty((rows, groups.ids.shape[1]), dtype=torch.int32, device=logits.device)
    for group in range(rank.shape[1]):  # not all groups at once: (rows, groups, vocabulary) is large
        rank[:, group] = (keys > best[:, group : group + 1]).sum(dim=1)
    rank.masked_fill_(empty, -1)

    top = keys.topk(top_k, dim=1).indices
    return Reduced(
        log_prob=log_prob,
        rank=rank,
        top_ids=top.to(torch.int32),
        top_log_prob=log_probs.gather(1, top),
        entropy=torch.special.entr(log_probs.exp()).sum(dim=1),
        kl=None if kl_reference is None else _kl(kl_reference.float(), log_probs),
    )


def _order_keys(logits: Tensor) -> Tensor:
    """Integers in the order of the logits, equal ones in the order of their ids: a total order, the same on any device.

    `topk` leaves the order of equal values open, and bfloat16 logits have many.
    """
    bits = (logits.float() + 0.0).view(torch.int32)  # a copy, in which minus zero has become zero
    bits ^= (bits >> 31) & 0x7FFFFFFF  # IEEE 754 bits as integers of the same order: negative ones are turned round
    keys = bits.to(torch.int64)
    keys <<= 32
    keys += torch.arange(logits.shape[-1] - 1, -1, -1, device=logits.device)
    return keys


def _kl(reference: Tensor, other: Tensor) -> Tensor:
    probability = reference.exp()
    terms = torch.where(probability > 0, probability * (reference - other), 0.0)
    return terms.sum(dim=-1).clamp_min(0.0)  # never negative, but for the rounding of the sum

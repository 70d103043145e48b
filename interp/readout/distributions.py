"""Distributions over the whole vocabulary, for those who need one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from interp.errors import InterpError

__all__ = ["check_finite", "kl_divergence", "log_probabilities"]

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

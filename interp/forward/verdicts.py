"""What is found out about a model's family once, by a small case done both ways, and kept by the model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["misfit", "off_by", "sample_ids", "verdict"]

# What a family that a fast way does not fit raises: caches and masks of other forms, arguments that do not broadcast.
_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError)
# Relative difference that roundings explain in float32; in coarser dtypes, some of theirs.
_TOLERANCE, _ROUNDINGS = 1e-4, 16
_log = logging.getLogger(__name__)


def sample_ids(model: StandardizedTransformer, rows: int = 2, length: int = 9) -> Tensor:
    """(row, position), token ids for a small case, the same at every call."""
    usable = min(model.vocab_size, len(model.tokenizer))
    ids = torch.randint(usable, (rows, length), generator=torch.Generator().manual_seed(0), device="cpu")
    return ids.to(model.device)


def verdict(model: StandardizedTransformer, name: str, reason: Callable[[], str | None], consequence: str) -> bool:
    """Whether something holds for a model: found out once, kept by the model, and said in the log where it does not.

    It never does for a model with edits that stay (`model.edit`).

    Arguments:
        model: the model.
        name: of the verdict, in `model.verdicts`.
        reason: finds out why it does not hold; None where it does.
        consequence: what the log says before the reason.
    """
    if model._edits:  # they are made in traces of the whole model alone; copies share what was found out without them
        if model.verdicts.setdefault("edits", True):
            family = type(model._module).__name__
            _log.warning("%s: prompts are run as a whole (slow): a fast way would leave out the model's edits.", family)
            model.verdicts["edits"] = False
        return False
    if name not in model.verdicts:
        found = reason()
        model.verdicts[name] = found is None
        if found is not None:
            _log.warning("%s: %s %s.", type(model._module).__name__, consequence, found)
    return model.verdicts[name]


def misfit(model: StandardizedTransformer, fast: Callable[[], Tensor], slow: Tensor) -> str | None:
    """Why a fast way does not give what the slow one gave; None where it does."""
    try:
        found = fast()
    except torch.OutOfMemoryError:
        raise
    except _ERRORS as error:
        return f"does not run in this family ({type(error).__name__}: {str(error)[:100]!r})"
    difference = off_by(model, found, slow)
    return None if difference is None else f"gives other numbers in this family (off by {difference:.2g})"


def off_by(model: StandardizedTransformer, found: Tensor, expected: Tensor) -> float | None:
    """The relative difference of two tensors, where roundings do not explain it; else None."""
    expected = expected.double()
    difference = float((found.double() - expected).norm() / expected.norm())
    return None if difference <= max(_TOLERANCE, _ROUNDINGS * torch.finfo(model.dtype).eps) else difference

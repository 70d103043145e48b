"""What is found out about a model's family once, by a small case done both ways, and kept by the model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.forward.check import walk_fits

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["fits", "sample_ids"]

_TOKENS, _ROWS = 9, 2
# What a family that the fast way does not fit raises: caches of its own, arguments that do not broadcast.
_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, NotImplementedError)
# Relative difference that roundings explain in float32; in coarser dtypes, some of theirs.
_TOLERANCE, _ROUNDINGS = 1e-4, 16
_log = logging.getLogger(__name__)


def sample_ids(model: StandardizedTransformer) -> Tensor:
    """(row, position), prompts for a small case, the same at every call."""
    usable = min(model.vocab_size, len(model.tokenizer))
    ids = torch.randint(usable, (_ROWS, _TOKENS), generator=torch.Generator().manual_seed(0))
    return ids.to(model.device)


@torch.no_grad()
def fits(
    model: StandardizedTransformer,
    name: str,
    fast: Callable[[], Tensor],
    slow: Callable[[], Tensor],
    *,
    misfit: str | None = None,
) -> bool:
    """Whether a fast way that walks gives what the slow one gives; where not, one line of the log says so.

    Where patches do not walk (`walk_fits`, which has its own line), nothing else does.

    Arguments:
        model: keeps the verdict.
        name: what is done, as the log calls it.
        fast, slow: a small case, each way.
        misfit: a reason that is known without trying.
    """
    if name not in model.verdicts:
        walks = walk_fits(model)
        reason = (misfit or _misfit(model, fast, slow)) if walks else None
        model.verdicts[name] = walks and reason is None
        if reason is not None:
            family = type(model._module).__name__
            _log.warning("%s: for %s, prompts are run as a whole (slow): the fast way %s.", family, name, reason)
    return model.verdicts[name]


def _misfit(model: StandardizedTransformer, fast: Callable[[], Tensor], slow: Callable[[], Tensor]) -> str | None:
    expected = slow().double()
    try:
        found = fast().double()
    except torch.OutOfMemoryError:
        raise
    except _ERRORS as error:
        return f"does not run in this family ({type(error).__name__}: {str(error)[:100]!r})"
    difference = float((found - expected).norm() / expected.norm())
    if not difference <= max(_TOLERANCE, _ROUNDINGS * torch.finfo(model.dtype).eps):
        return f"gives other numbers in this family (off by {difference:.2g})"
    return None

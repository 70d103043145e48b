"""What is found out about a model once, by a small case done both ways, and kept by the model.

A small case speaks for prompts that take the same path through the model. So a verdict is one for each regime
(`interp.model.regimes`): the first prompt that is longer than a window, say, has the case tried beyond the window too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.model.hooks import users_hook
from interp.model.regimes import SMALL, regimes
from interp.passes import turn

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["holds", "is_changed", "misfit", "off_by", "sample_ids", "verdict"]

# What a family that a fast way does not fit raises: caches and masks of other forms, arguments that do not broadcast.
_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError)
# Relative difference that roundings explain in float32; in coarser dtypes, some of theirs.
_TOLERANCE, _ROUNDINGS = 1e-4, 16
_log = logging.getLogger(__name__)


def sample_ids(model: StandardizedTransformer, rows: int = 2, length: int = SMALL) -> Tensor:
    """(row, position), token ids for a case, the same at every call; in a longer one each token stands twice.

    Of two keys that say the same, attention that chooses its keys takes either, by where they stand in a batch.
    """
    usable = min(model.vocab_size, len(model.tokenizer))
    ids = torch.randint(usable, (rows, length), generator=torch.Generator().manual_seed(0), device="cpu")
    if length > SMALL + 3:
        half = length // 2
        ids[:, half : 2 * half] = ids[:, :half]
    return ids.to(model.device)


def is_changed(model: StandardizedTransformer) -> bool:
    """Whether the user has changed what the model computes: edits that stay (`model.edit`), hooks, forward passes.

    Then prompts run as a whole, side by side, those of one length together: whatever counts tokens, from the beginning
    or from the end, counts those of each prompt. One line of the log says so.

    Arguments:
        model: the model.
    """
    if model._edits:  # they are made in traces of the whole model alone; copies share what was found out without them
        name, reason = "edits", "leave out the model's edits"
    else:
        hook = users_hook(model._module)
        if hook is None:
            return False
        name = reason = f"show {hook} other tokens than each prompt's own"
    if model.verdicts.setdefault(name, True):
        family = type(model._module).__name__
        _log.warning("%s: prompts are run as a whole (slow): a fast way would %s.", family, reason)
        model.verdicts[name] = False
    return True


def verdict(
    model: StandardizedTransformer,
    name: str,
    reason: Callable[[int], str | None],
    consequence: str,
    *,
    longest: int,
    at_hand: bool = False,
    level: int = logging.WARNING,
) -> bool:
    """Whether something holds for prompts of a model: found out once in each regime, and said where it does not.

    It never does for a model that the user has changed (`is_changed`).

    Arguments:
        model: the model.
        name: of the verdict, in `model.verdicts`.
        reason: finds out why it does not hold, by a case of so many tokens; None where it does.
        consequence: what the log says before the reason.
        longest: tokens of the longest prompt, or of the row that it stands in.
        at_hand: whether the case is the prompts at hand, which speak for their own regime alone.
        level: of the line in the log.
    """
    return not is_changed(model) and holds(
        model, name, reason, consequence, longest=longest, at_hand=at_hand, level=level
    )


def holds(
    model: StandardizedTransformer,
    name: str,
    reason: Callable[[int], str | None],
    consequence: str,
    *,
    longest: int,
    at_hand: bool = False,
    level: int = logging.WARNING,
) -> bool:
    """The same of the model as it is without the user's changes."""
    passed = regimes(model, longest)
    with turn(model._module):  # a trial switches ways that every run of the model would take
        for limit in passed[-1:] if at_hand else passed:
            beyond = f" beyond {limit} tokens" if limit else ""
            if name + beyond not in model.verdicts:
                try:
                    found = reason(limit + SMALL)
                except (torch.OutOfMemoryError, MemoryError):
                    if at_hand or not limit:
                        raise
                    found = "cannot be tried, for want of memory"  # though what is asked for may have room
                model.verdicts[name + beyond] = found is None
                if found is not None:
                    _log.log(level, "%s%s: %s %s.", type(model._module).__name__, beyond, consequence, found)
            if not model.verdicts[name + beyond]:
                return False
    return True


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

"""Is the model ready to run, and is it causal: do later tokens leave everything at earlier ones unchanged?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnsight
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.model.verdicts import off_by, sample_ids, verdict
from interp.passes import check_not_open
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["check_ready", "is_causal"]


_SHORT, _AFTER = 6, 4  # tokens of a short prompt, and those that follow


@torch.no_grad()
def is_causal(model: StandardizedTransformer, longest: int) -> bool:
    """Whether later tokens change nothing at earlier ones.

    Then prompts may be filled up on the right without a mask, and what follows the last token that is read need not be
    computed. Found out once, by two prompts that begin alike, and by their beginnings alone; the verdict is kept by the
    model.

    Arguments:
        model: the model.
        longest: tokens of the longest prompt.
    """
    consequence = "prompts run whole, padded under a mask: the model"
    return verdict(model, "causal", lambda length: _looks_ahead(model, length), consequence, longest=longest)


def _looks_ahead(model: StandardizedTransformer, length: int) -> str | None:
    ids = sample_ids(model, 2, length + 1)
    before = length + 1 - _AFTER
    ids[1, :before] = ids[0, :before]
    whole = _final(model, ids)[:, :before]
    difference = off_by(model, whole[1], whole[0])
    for beginning in {_SHORT, before} if difference is None else ():
        alone = _final(model, ids[:1, :beginning])
        difference = difference or off_by(model, whole[0, :beginning], alone[0])
    return None if difference is None else f"looks ahead (by {difference:.2g})"


def _final(model: StandardizedTransformer, ids: Tensor) -> Tensor:
    """(row, position, hidden), after the last layer."""
    with model.trace(input_ids=ids, use_cache=False) as tracer:
        hidden: Tensor = nnsight.save(model.read(Site("resid_post", model.num_layers - 1)).clone())
        tracer.stop()
    return hidden


def check_ready(model: StandardizedTransformer) -> None:
    """Refuse a model in training mode, whose numbers would be random, or one in the middle of a pass.

    Arguments:
        model: the model.

    Raises:
        InterpError: it is in training mode, or a trace of it is open.
    """
    if model._module.training:
        raise InterpError(
            f"{type(model._module).__name__} is in training mode, where dropout draws at random. It was in eval mode "
            "when it was loaded: call `.eval()` on it first, and `.train()` afterwards."
        )
    check_not_open(model)

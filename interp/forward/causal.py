"""Whether a model looks ahead: whether what follows a token changes what it computes at that token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnsight
import torch

from interp.forward.verdicts import off_by, sample_ids, verdict
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["is_causal"]

_BEFORE, _AFTER = 6, 4


@torch.no_grad()
def is_causal(model: StandardizedTransformer) -> bool:
    """Whether what follows a token leaves everything at it as it is.

    Then prompts may be filled up on the right without a mask, and what follows the last token that is read need not be
    computed. Found out once, by two prompts that begin alike; the verdict is kept by the model.

    Arguments:
        model: the model.
    """
    return verdict(model, "causal", lambda: _looks_ahead(model), "prompts run whole, padded under a mask: the model")


def _looks_ahead(model: StandardizedTransformer) -> str | None:
    ids = sample_ids(model, 2, _BEFORE + _AFTER)
    ids[1, :_BEFORE] = ids[0, :_BEFORE]
    with model.trace(input_ids=ids, use_cache=False) as tracer:
        hidden = nnsight.save(model.read(Site("resid_post", model.num_layers - 1))[:, :_BEFORE].clone())
        tracer.stop()
    difference = off_by(model, hidden[1], hidden[0])
    return None if difference is None else f"looks ahead (by {difference:.2g})"

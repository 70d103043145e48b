"""Whether a model looks ahead: whether what follows a token changes what it computes at that token."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import nnsight
import torch

from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["is_causal"]

_BEFORE, _AFTER = 6, 4
# Relative difference that roundings explain in float32; in coarser dtypes, some of theirs.
_TOLERANCE, _ROUNDINGS = 1e-4, 16
_log = logging.getLogger(__name__)


@torch.no_grad()
def is_causal(model: StandardizedTransformer) -> bool:
    """Whether what follows a token leaves everything at it as it is.

    Then prompts may be filled up on the right without a mask, and what follows the last token that is read need not be
    computed. Found out once, by two prompts that begin alike; the verdict is kept by the model.

    Arguments:
        model: the model.
    """
    if model.causal is None:
        generator = torch.Generator().manual_seed(0)
        usable = min(model.vocab_size, len(model.tokenizer))
        ids = torch.randint(usable, (2, _BEFORE + _AFTER), generator=generator)
        ids[1, :_BEFORE] = ids[0, :_BEFORE]
        with model.trace(input_ids=ids.to(model.device), use_cache=False) as tracer:
            hidden = nnsight.save(model.read(Site("resid_post", model.num_layers - 1))[:, :_BEFORE].double())
            tracer.stop()
        difference = float((hidden[0] - hidden[1]).norm() / hidden[0].norm())
        model.causal = difference <= max(_TOLERANCE, _ROUNDINGS * torch.finfo(model.dtype).eps)
        if not model.causal:
            name = type(model._module).__name__
            _log.warning("%s looks ahead (by %.2g): prompts run whole, padded under a mask.", name, difference)
    return model.causal

"""Whether the walk up the layers fits a model's family, found out once by small cases done both ways."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import nnsight
import torch
from torch import Tensor

from interp.forward.plain import run_patched
from interp.forward.walk import walk
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["walk_fits"]

_TOKENS, _ROWS = 9, 2
# What a family that the walk does not fit raises: caches of its own, arguments that do not broadcast.
_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)
# Relative difference that roundings explain in float32; in coarser dtypes, some of theirs.
_TOLERANCE, _ROUNDINGS = 1e-4, 16
_log = logging.getLogger(__name__)


@torch.no_grad()
def walk_fits(model: StandardizedTransformer) -> bool:
    """Whether `walk` gives what plain forward passes give.

    Recurrent layers, keys shared between layers and the like do not fit; then one line of the log says so. The verdict
    is kept by the model.

    Arguments:
        model: the model.
    """
    if model.walk_fits is None:
        reason = _misfit(model)
        model.walk_fits = reason is None
        if reason is not None:
            name = type(model._module).__name__
            _log.warning("%s: target prompts are run as a whole, layer by layer (slow): the fast way %s.", name, reason)
    return model.walk_fits


def _misfit(model: StandardizedTransformer) -> str | None:
    """Why it does not fit; None where it does. Leaves the model with the faster way that fits."""
    generator = torch.Generator().manual_seed(0)
    usable = min(model.vocab_size, len(model.tokenizer))
    ids = torch.randint(usable, (_ROWS, _TOKENS), generator=generator)
    layers = sorted({0, model.num_layers // 2, model.num_layers - 1})
    size = _typical_size(model, ids)
    latents = {
        layer: (size * torch.randn(_ROWS, model.hidden_size, generator=generator)).to(model.device, model.dtype)
        for layer in range(model.num_layers)
    }
    cases = [(_TOKENS // 2, True), (_TOKENS - 1, False)]
    slow = [
        torch.stack([_plain(model, ids, position, latents, layer, from_layer) for layer in layers]).double()
        for position, from_layer in cases
    ]
    reason = None
    for model.shares_prefix in (True, False):
        reason = None
        for (position, from_layer), plain in zip(cases, slow, strict=True):
            try:
                fast, _ = walk(model, ids.to(model.device), position, latents, layers=layers, from_layer=from_layer)
            except torch.OutOfMemoryError:
                raise
            except _ERRORS as error:
                reason = f"does not run in this family ({type(error).__name__}: {str(error)[:100]!r})"
                break
            difference = float((fast.double() - plain).norm() / plain.norm())
            if not difference <= max(_TOLERANCE, _ROUNDINGS * torch.finfo(model.dtype).eps):
                reason = f"gives other numbers in this family (off by {difference:.2g})"
                break
        if reason is None:
            break
    return reason


def _typical_size(model: StandardizedTransformer, ids: Tensor) -> float:
    """Root mean square of the residual stream in the middle of the model."""
    last = Site("resid_post", model.num_layers // 2)
    with model.trace(input_ids=ids, use_cache=False) as tracer:
        size = nnsight.save(model.read(last).float().square().mean().sqrt())
        tracer.stop()
    return float(size)


def _plain(
    model: StandardizedTransformer, ids: Tensor, position: int, latents: dict[int, Tensor], layer: int, from_layer: bool
) -> Tensor:
    patched = range(layer, model.num_layers) if from_layer else [layer]
    writes = [(Site("resid_post", index), latents[index]) for index in patched]
    return run_patched(model, ids.tolist(), [position] * len(ids), writes)

"""Whether the walk up the layers fits a model's family, found out once by small cases done both ways."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import nnsight
import torch
from torch import Tensor

from interp.forward.plain import run_patched
from interp.forward.walk import walk
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Case", "cases", "walk_fits"]

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


@dataclass(frozen=True)
class Case:
    """Target prompts, what is written into them, and where.

    Arguments:
        model: the model.
        ids: (row, length).
        positions: the tokens that are written.
        latents: layer -> (row, position, hidden).
        from_layer: whether later layers are written too.
    """

    model: StandardizedTransformer
    ids: Tensor
    positions: list[int]
    latents: dict[int, Tensor]
    from_layer: bool

    @property
    def layers(self) -> list[int]:
        """The layers that are patched."""
        last = self.model.num_layers - 1
        return sorted({0, self.model.num_layers // 2, last})

    def walked(self) -> Tensor:
        """(layer, row, hidden) by the walk."""
        variants = {layer: latent[None] for layer, latent in self.latents.items()}
        later = self.latents if self.from_layer else None
        ids = self.ids.to(self.model.device)
        return walk(self.model, ids, self.positions, variants, layers=self.layers, later=later)[0][:, 0]

    def plain(self, following: Tensor | None = None) -> Tensor:
        """(layer, row, hidden) by whole forward passes, also with tokens (layer, row, token) that follow."""
        found = []
        for index, layer in enumerate(self.layers):
            ids = self.ids if following is None else torch.cat([self.ids, following[index]], dim=1)
            patched = range(layer, self.model.num_layers) if self.from_layer else [layer]
            writes = [(Site("resid_post", held), self.latents[held]) for held in patched]
            found.append(run_patched(self.model, ids.tolist(), [self.positions] * len(ids), writes))
        return torch.stack(found)


def cases(model: StandardizedTransformer) -> list[Case]:
    """Small ones: several tokens from a layer on; the last token at one layer."""
    generator = torch.Generator().manual_seed(0)
    usable = min(model.vocab_size, len(model.tokenizer))
    ids = torch.randint(usable, (_ROWS, _TOKENS), generator=generator)
    size = _typical_size(model, ids)
    latents = {
        layer: (size * torch.randn(_ROWS, 2, model.hidden_size, generator=generator)).to(model.device, model.dtype)
        for layer in range(model.num_layers)
    }
    first = {layer: latent[:, :1] for layer, latent in latents.items()}
    middle = _TOKENS // 2
    return [Case(model, ids, [middle, middle + 2], latents, True), Case(model, ids, [_TOKENS - 1], first, False)]


def _misfit(model: StandardizedTransformer) -> str | None:
    """Why it does not fit; None where it does. Leaves the model with the faster way that fits."""
    small = cases(model)
    slow = [case.plain() for case in small]
    reason = None
    for model.shares_prefix in (True, False):
        reasons = (_difference(model, case.walked, plain) for case, plain in zip(small, slow, strict=True))
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is None:
            break
    return reason


def _difference(model: StandardizedTransformer, fast: Callable[[], Tensor], slow: Tensor) -> str | None:
    """Why a fast way does not give what the slow one gave; None where it does."""
    try:
        found = fast().double()
    except torch.OutOfMemoryError:
        raise
    except _ERRORS as error:
        return f"does not run in this family ({type(error).__name__}: {str(error)[:100]!r})"
    difference = float((found - slow.double()).norm() / slow.double().norm())
    if not difference <= max(_TOLERANCE, _ROUNDINGS * torch.finfo(model.dtype).eps):
        return f"gives other numbers in this family (off by {difference:.2g})"
    return None


def _typical_size(model: StandardizedTransformer, ids: Tensor) -> float:
    """Root mean square of the residual stream in the middle of the model."""
    last = Site("resid_post", model.num_layers // 2)
    with model.trace(input_ids=ids, use_cache=False) as tracer:
        size = nnsight.save(model.read(last).float().square().mean().sqrt())
        tracer.stop()
    return float(size)

"""Whether the walk up the layers fits a model's family, found out once by small cases done both ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import nnsight
import torch
from torch import Tensor

from interp.forward.plain import run_patched
from interp.forward.walk import walk
from interp.model.regimes import SMALL
from interp.model.verdicts import is_changed, misfit, sample_ids, verdict
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Case", "cases", "fits", "walk_fits"]


@torch.no_grad()
def walk_fits(model: StandardizedTransformer, longest: int) -> bool:
    """Whether `walk` gives what plain forward passes give.

    Recurrent layers, keys shared between layers and the like do not fit; then one line of the log says so. The verdict
    is kept by the model.

    Arguments:
        model: the model.
        longest: tokens of the longest prompt.
    """
    consequence = "target prompts are run as a whole, layer by layer (slow): the fast way"
    return verdict(model, "walk", lambda length: _misfit(model, length), consequence, longest=longest)


@torch.no_grad()
def fits(
    model: StandardizedTransformer,
    name: str,
    case: Callable[[int], tuple[Callable[[], Tensor], Callable[[], Tensor]]],
    *,
    longest: int,
    known: str | None = None,
) -> bool:
    """Whether another fast way that walks gives what the slow one gives; where not, one line of the log says so.

    Where patches do not walk (`walk_fits`, which has its own line), nothing else does.

    Arguments:
        model: keeps the verdict.
        name: what is done, as the log calls it.
        case: from a number of tokens to a case of prompts that long, the fast way and the slow one.
        longest: tokens of the longest prompt.
        known: a reason why not that is known without trying.
    """
    if not walk_fits(model, longest):
        if not is_changed(model) and not walk_fits(model, SMALL):
            model.verdicts[name] = False
        return False
    consequence = f"for {name}, prompts are run as a whole (slow): the fast way"

    def reason(length: int) -> str | None:
        if known is not None:
            return known
        fast, slow = case(length)
        return misfit(model, fast, slow())

    return verdict(model, name, reason, consequence, longest=longest)


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


def cases(model: StandardizedTransformer, length: int = SMALL) -> list[Case]:
    """Two of so many tokens: several tokens from a layer on; the last token at one layer."""
    ids = sample_ids(model, length=length).cpu()
    rows = len(ids)
    generator = torch.Generator().manual_seed(1)
    size = _typical_size(model, ids)
    latents = {
        layer: (
            size * torch.randn(rows, 2, model.hidden_size, generator=generator, dtype=torch.float32, device="cpu")
        ).to(model.device, model.dtype)
        for layer in range(model.num_layers)
    }
    first = {layer: latent[:, :1] for layer, latent in latents.items()}
    middle = length // 2
    return [Case(model, ids, [middle, middle + 2], latents, True), Case(model, ids, [length - 1], first, False)]


def _misfit(model: StandardizedTransformer, length: int) -> str | None:
    """Why it does not fit; None where it does. Leaves the model with the faster way that fits few tokens."""
    small = cases(model, length)
    slow = [case.plain() for case in small]
    reason = None
    ways = (True, False) if length == SMALL else (model.shares_prefix,)
    for model.shares_prefix in ways:
        reasons = (misfit(model, case.walked, plain) for case, plain in zip(small, slow, strict=True))
        reason = next((reason for reason in reasons if reason is not None), None)
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

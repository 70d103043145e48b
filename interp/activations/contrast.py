"""Steering vectors of a model from contrast pairs of prompts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.activations.prompt_runs import run
from interp.errors import InterpError
from interp.interventions.steering import Contrast, SteeringVectors, contrast
from interp.sites import HEAD_KINDS, MAP_KINDS, Site, Spelling

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["steering_vectors"]


def steering_vectors(
    model: StandardizedTransformer,
    positive: Any,
    negative: Any,
    *,
    images: Any = None,
    negative_images: Any = None,
    sites: Spelling | Iterable[Spelling] = "resid_post.*",
    position: str | int = "last",
    method: Contrast = "mean_difference",
    batch_size: int | None = None,
) -> SteeringVectors:
    """Vectors that lead from prompts of one kind to those of another, at each of several sites.

    Arguments:
        model: the model.
        positive, negative: prompts that show what is wanted, and their pairs that do not, as `model.run` takes them.
        images: of both, where they are pairs: an entry a prompt, as of `model.run`.
        negative_images: of the negative ones, where these are others; `[None, ...]` where they have none.
        sites: where, e.g. `resid_post.*`.
        position: which tokens of each prompt are read; of several, their mean.
        method: `mean_difference` or `principal_component` (`interp.interventions.steering`).
        batch_size: as in `model.run`.

    Returns:
        A vector for each site.

    Raises:
        InterpError: prompts that are no pairs where there must be pairs, a site without numbers of its own (`scores`,
            `pattern`), or what `model.run` refuses.
    """
    ends = []
    others = images if negative_images is None else negative_images
    for prompts, own in ((positive, images), (negative, others)):
        read = run(model, prompts, images=own, read=sites, positions=position, logits=False, batch_size=batch_size)
        given = read.activations
        ends.append({name: _of_prompts(site, given[name]) for name, site in given.sites.items()})
    return SteeringVectors({name: contrast(ends[0][name], ends[1][name], method) for name in ends[0]}, method)


def _of_prompts(site: Site, value: Tensor) -> Tensor:
    """(prompt, [head,] number), the mean over the positions of each prompt."""
    if site.kind in MAP_KINDS:
        raise InterpError(f"sites: {site} has a number for each key, which is no direction. Use z or resid_post.")
    has_heads = site.kind in HEAD_KINDS and site.head is None
    return value.float().nanmean(dim=2 if has_heads and site.kind in ("q", "k", "v") else 1)

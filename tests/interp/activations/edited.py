"""Interventions by hand: the slow twin of `model.run`, one prompt without padding in a plain nnsight trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from interp.model import StandardizedTransformer

Change = Callable[[Tensor], None]
"""Changes the whole value of a site, (1, ...), in place."""


@torch.no_grad()
def traced(
    model: StandardizedTransformer, ids: Sequence[int], changes: Mapping[str, Change], read: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Logits, and what sites have, of one prompt; each by site, (1, ...).

    Arguments:
        model: the model.
        ids: token ids of the prompt.
        changes: by site.
        read: sites that are read, after their own change.
    """
    found: dict[str, Tensor] = {}
    with model.trace(input_ids=torch.tensor([list(ids)]), use_cache=False):
        for site in model.in_order(list(dict.fromkeys([*changes, *read, "logits"]))):
            value = model.read(site)
            if str(site) in changes:
                value = value.clone()
                changes[str(site)](value)
                model.write(site, value)
            if str(site) in read or str(site) == "logits":
                found[str(site)] = value.clone()
    return found


def at(index: object, change: Callable[[Tensor], Tensor]) -> Change:
    """Change a part of a value."""

    def inside(value: Tensor) -> None:
        value[index] = change(value[index])  # type: ignore[index]

    return inside

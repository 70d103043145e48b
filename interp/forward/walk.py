"""One walk up the layers, in which rows join at the layer that they are patched at.

A patch at layer l and position p leaves everything before p, and all layers up to l, as they were. So the positions
before p are computed once and frozen, layers up to l are those of the clean prompt, and a patchscope over L layers
costs about L / 2 passes over the positions from p on, in place of L passes over the whole prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.forward.clean import CleanRun

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["walk"]


@torch.no_grad()
def walk(
    model: StandardizedTransformer,
    target_ids: Tensor,
    position: int,
    latents: Mapping[int, Tensor],
    *,
    layers: Sequence[int],
    from_layer: bool = False,
) -> tuple[Tensor, Tensor]:
    """Write latents into target prompts, a layer at a time, and give what the last layer makes of each.

    Arguments:
        model: the model.
        target_ids: (row, length), target prompts, all equally long; or (1, length), one for all rows.
        position: the token of them that is written, counted from 0.
        latents: layer -> (row, hidden), what is written after it.
        layers: the layers that are patched, ascending.
        from_layer: write at each later layer too, with the latent of that layer.

    Returns:
        (layer, row, hidden), the residual stream after the last layer at the last token, for a patch at each of
        `layers`; and (row, hidden), the same of the unpatched prompts.
    """
    clean = CleanRun.of(model, target_ids, position)
    rows = len(latents[layers[0]])
    wanted = set(layers)
    walking: Tensor | None = None
    for index in range(model.num_layers):
        if walking is not None:
            walking = clean.through(index, walking)
            if from_layer:
                walking.unflatten(0, (-1, rows))[:, :, 0] = latents[index]
        if index in wanted:
            joining = clean.hidden(index).expand(rows, -1, -1).clone()
            joining[:, 0] = latents[index]
            walking = joining if walking is None else torch.cat([walking, joining])
    assert walking is not None  # there is at least one layer
    unpatched = clean.hidden(model.num_layers - 1)[:, -1].expand(rows, -1)
    return walking[:, -1].unflatten(0, (-1, rows)), unpatched

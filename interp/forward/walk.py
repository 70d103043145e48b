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
from interp.forward.rotary import first_changed

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["walk", "walk_up"]


@torch.no_grad()
def walk(
    model: StandardizedTransformer,
    target_ids: Tensor,
    positions: Sequence[int],
    latents: Mapping[int, Tensor],
    *,
    layers: Sequence[int],
    later: Mapping[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Write latents into target prompts, a layer at a time, and give what the last layer makes of each.

    Arguments:
        model: the model.
        target_ids: (row, length), target prompts, all equally long; or (1, length), one for all rows.
        positions: the tokens of them that are written, all at once, counted from 0.
        latents: layer -> (variant, row, position, hidden), what is written after it. Every variant is a run of its own:
            the lens has one, a grid has one for each source layer.
        layers: the layers that are patched, ascending.
        later: layer -> (row, position, hidden), what is written there into runs that were patched at an earlier layer;
            None: nothing.

    Returns:
        (layer, variant, row, hidden), the residual stream after the last layer at the last token, for a patch at each
        of `layers`; and (row, hidden), the same of the unpatched prompts.
    """
    start = first_changed(model, target_ids.shape[1], min(positions))
    clean = CleanRun.of(model, target_ids, start)
    variants, rows = latents[layers[0]].shape[:2]
    walked = walk_up(clean, [position - start for position in positions], latents, layers=layers, later=later)
    unpatched = clean.hidden(model.num_layers - 1)[:, -1].expand(rows, -1)
    return walked[:, -1].unflatten(0, (len(layers), variants, rows)), unpatched


@torch.no_grad()
def walk_up(
    clean: CleanRun,
    columns: Sequence[int],
    latents: Mapping[int, Tensor],
    *,
    layers: Sequence[int],
    later: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """The walk itself, from target prompts that have been run as they are.

    Arguments:
        clean: the prompts.
        columns: the tokens that are written, counted from the first that is.
        latents, layers, later: as in `walk`.

    Returns:
        (layer and variant and row, position, hidden), the residual stream after the last layer from the first written
        token on.
    """
    walking: Tensor | None = None
    for index in range(clean.model.num_layers):
        if walking is not None:
            walking = clean.through(index, walking)
            if later is not None:
                _write(walking.unflatten(0, (-1, later[index].shape[0])), columns, later[index])
        if index in layers:
            variants, rows = latents[index].shape[:2]
            joining = clean.hidden(index)  # (prompt, position, hidden)
            joining = joining.expand(variants, rows, *joining.shape[1:]).clone()
            _write(joining, columns, latents[index])
            joining = joining.flatten(0, 1)
            walking = joining if walking is None else torch.cat([walking, joining])
    assert walking is not None  # there is at least one layer
    return walking


def _write(hidden: Tensor, columns: Sequence[int], latents: Tensor) -> None:
    """Write (..., written position, hidden) over columns of (..., position, hidden), wherever either lies."""
    for place, column in enumerate(columns):
        hidden[..., column, :] = latents[..., place, :]

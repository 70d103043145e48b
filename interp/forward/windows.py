"""A walk up the layers in which rows join before their window of layers, and something is done to them inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from interp.forward.clean import CleanRun

__all__ = ["walk_windows"]

Inside = Callable[[int, Tensor, list[int]], Tensor]
"""Layer, rows before it, and which entries are inside their window there -> the rows after it."""


@torch.no_grad()
def walk_windows(clean: CleanRun, windows: Sequence[range], inside: Inside) -> Tensor:
    """Let the prompts join once for each window, and give what the last layer makes of each.

    Below its window an entry is the clean run, which has been computed. Above it, the entry goes on as any prompt does,
    from what the window has made of it.

    Arguments:
        clean: the prompts.
        windows: layers of each entry, ascending by the first of them; none is empty.
        inside: takes the walking rows, (entry x prompt, position, hidden), through one layer.

    Returns:
        (entry, prompt, hidden), the residual stream after the last layer at the last token.
    """
    assert all(first.start <= second.start for first, second in pairwise(windows))
    last = clean.model.num_layers - 1
    prompts = len(clean.hidden(-1))
    walking, joined = clean.hidden(-1)[:0], 0
    for layer in range(windows[0].start, last + 1):
        joining = sum(window.start == layer for window in windows)
        if joining:
            walking = torch.cat([walking, clean.hidden(layer - 1).repeat(joining, 1, 1)])
            joined += joining
        active = [entry for entry in range(joined) if layer in windows[entry]]
        walking = inside(layer, walking, active) if active else clean.through(layer, walking)
    return walking[:, -1].unflatten(0, (-1, prompts))

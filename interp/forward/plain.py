"""The plain way: one traced forward pass of whole prompts, padded on the left where their lengths differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import nnsight
import torch
from torch import Tensor

from interp.forward.rotary import forget_lengths
from interp.matmul import faster_products
from interp.model.fed import whole_inputs
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["run_patched"]


@torch.no_grad()
def run_patched(
    model: StandardizedTransformer,
    target_ids: Sequence[Sequence[int]],
    positions: Sequence[int] | Sequence[Sequence[int]],
    writes: Sequence[tuple[Site, Tensor]],
) -> Tensor:
    """Run target prompts with latents written into them, up to the last layer and without the head.

    Arguments:
        model: the model.
        target_ids: token ids of each row's prompt, unpadded.
        positions: the token of each row that is written, counted without padding; or several, equally many in each.
        writes: sites in the order of a forward pass, and what is written there, (row, hidden_size); or (row, position,
            hidden_size) where several tokens are.

    Returns:
        (row, hidden_size), the residual stream after the last layer at each prompt's last token.
    """
    forget_lengths(model)
    inputs = whole_inputs(model, target_ids)
    longest = inputs["input_ids"].shape[1]
    columns, rows = (
        torch.tensor(positions, device="cpu"),
        torch.arange(len(target_ids), device="cpu"),
    )  # (row,) or (row, position); (row,)
    padding = torch.tensor([longest - len(ids) for ids in target_ids], device="cpu")
    if columns.dim() == 2:
        rows, padding = rows[:, None], padding[:, None]
    columns += padding
    last = Site("resid_post", model.num_layers - 1)
    final: Tensor
    fed = inputs["input_ids"].numel()
    products = faster_products(fed, model.hidden_size, model.dtype, model.device)
    with products, model.trace(**inputs, use_cache=False) as tracer:
        for site, latent in writes:
            patched = model.read(site).clone()  # others may hold the tensor that the model made
            patched[rows.to(patched.device), columns.to(patched.device)] = latent.to(patched)
            model.write(site, patched)
        final = nnsight.save(model.read(last)[:, -1].clone())
        tracer.stop()
    return final

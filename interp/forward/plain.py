"""The plain way: one traced forward pass of whole prompts, padded on the left where their lengths differ."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import nnsight
import torch
from torch import Tensor

from interp.activations.batches import left_padded
from interp.forward.rotary import forget_lengths
from interp.products import faster_products
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["run_patched", "whole_inputs"]


def whole_inputs(model: StandardizedTransformer, input_ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """What a forward pass of whole prompts is given; of one length, unless padding leaves the model's numbers alone.

    Arguments:
        model: the model.
        input_ids: token ids of each prompt, unpadded.

    Returns:
        `input_ids`, and `attention_mask` and `position_ids` where the model takes them, each (row, position).
    """
    inputs = left_padded(input_ids, 0, model.device)  # 0 is in every vocabulary, a pad token may not be
    parameters = inspect.signature(type(model._module).forward).parameters.values()
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    if not takes_any and "attention_mask" not in {parameter.name for parameter in parameters}:
        del inputs["attention_mask"]
    if not model.takes_position_ids:  # no positions (Bloom, MPT), only distances, which padding leaves alone
        del inputs["position_ids"]
    return inputs


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
    columns, rows = torch.tensor(positions), torch.arange(len(target_ids))  # (row,) or (row, position); (row,)
    padding = torch.tensor([longest - len(ids) for ids in target_ids])
    if columns.dim() == 2:
        rows, padding = rows[:, None], padding[:, None]
    columns += padding
    last = Site("resid_post", model.num_layers - 1)
    final: Tensor
    fed = inputs["input_ids"].numel()
    with faster_products(model, fed), model.trace(**inputs, use_cache=False) as tracer:
        for site, latent in writes:
            patched = model.read(site).clone()  # others may hold the tensor that the model made
            patched[rows.to(patched.device), columns.to(patched.device)] = latent.to(patched)
            model.write(site, patched)
        final = nnsight.save(model.read(last)[:, -1].clone())
        tracer.stop()
    return final

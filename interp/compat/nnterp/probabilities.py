"""nnterp's probabilities from the code that our own lenses run on: `interp.activations` reads, `readout` speaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nnsight
import torch
from torch import Tensor

from interp.activations import collect
from interp.batching import how_many
from interp.model import StandardizedTransformer
from interp.sites import Site

__all__ = ["last_states", "probabilities", "prompt_ids"]

_FED = {"input_ids", "attention_mask", "position_ids", "token_type_ids"}  # what a text is fed as


def prompt_ids(nn_model: Any, prompts: Any) -> list[list[int]] | None:
    """The token ids of prompts as a trace of them feeds the model, without padding.

    Arguments:
        nn_model: the model.
        prompts: whatever nnsight traces.

    Returns:
        The ids of each prompt; None where they are not all that the model is given: the model is not one of ours or
        has been edited, or there are images, embeddings, masks with gaps, or positions that do not count from 0.
    """
    # An edit is part of each trace, and what calls single layers would pass it by.
    if not isinstance(nn_model, StandardizedTransformer) or nn_model._edits:
        return None
    with nn_model.trace(prompts) as tracer:
        _, given = nn_model.inputs
        fed = nnsight.save(dict(given))
        tracer.stop()
    return _unpadded(fed)


def _unpadded(fed: Mapping[str, Any]) -> list[list[int]] | None:
    """The ids of each row; None where they are not all that is given."""
    if (
        not fed.keys() <= _FED
        or "input_ids" not in fed
        or bool(fed.get("token_type_ids", torch.zeros((), dtype=torch.float32, device="cpu")).any())
    ):
        return None
    ids = fed["input_ids"]
    mask = fed.get("attention_mask", torch.ones_like(ids))
    own = mask.long().cumsum(1) - 1
    first, last = mask.long().argmax(1), mask.shape[1] - 1 - mask.long().flip(1).argmax(1)
    whole = (last - first + 1 == mask.sum(1)) & mask.any(1)
    counted = (fed.get("position_ids", own) == own) | (mask == 0)
    if not (bool(whole.all()) and bool(counted.all())):
        return None
    return [row[here.bool()].tolist() for row, here in zip(ids, mask, strict=True)]


def last_states(nn_model: StandardizedTransformer, ids: list[list[int]]) -> Tensor:
    """(prompt, layer, hidden), the residual stream after each layer at each prompt's last token, on the CPU."""
    sites = [Site("resid_post", layer) for layer in range(nn_model.num_layers)]
    read = collect(nn_model, ids, sites, [[len(own) - 1] for own in ids])["resid_post"]
    return read[:, :, 0].transpose(0, 1)


@torch.no_grad()
def probabilities(nn_model: StandardizedTransformer, hidden: Tensor, *, negate: bool = False) -> Tensor:
    """What residual streams say, over the whole vocabulary.

    Beside the result, logits of a few rows at a time are held, on the device of the head.

    Arguments:
        nn_model: the model.
        hidden: (..., hidden), anywhere.
        negate: turn the sign after the last norm.

    Returns:
        Probabilities (..., vocabulary), float32, on the CPU.
    """
    rows = hidden.flatten(0, -2)
    found = torch.empty(len(rows), nn_model.readout(rows[:0]).shape[-1], dtype=torch.float32, device="cpu")
    step = how_many(found.shape[1], nn_model.device)
    for start in range(0, len(rows), step):
        logits = nn_model.readout(rows[start : start + step], negate=negate)
        found[start : start + step] = logits.float().softmax(-1)
    return found.view(*hidden.shape[:-1], -1)

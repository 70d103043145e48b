"""The gradients of a tuned lens's translators, one layer's logits at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from interp.lenses.tuned.lens import TunedLens
from interp.lenses.tuned.settings import Loss
from interp.lenses.tuned.states import TokenStates, token_chunks
from interp.readout import log_probabilities

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["accumulate_gradients"]


def accumulate_gradients(
    model: StandardizedTransformer, lens: TunedLens, states: TokenStates, loss: Loss, totals: dict[int, Tensor]
) -> int:
    """Add the gradients of summed losses to a lens's translators, one layer's logits at a time.

    Losses are summed, not averaged: small gradients of many tokens would underflow in float16.

    Arguments:
        model: the model; its own weights get no gradients.
        lens: `grad` of its parameters is added to.
        states: the model's residual streams.
        loss: which.
        totals: layer -> summed loss in nats, which is added to.

    Returns:
        How many tokens the sums go over.
    """
    states = states.followed() if loss == "cross_entropy" else states
    for chunk in token_chunks(states, model.vocab_size):
        with torch.no_grad():
            final = log_probabilities(model.readout(chunk.final)) if loss == "kl" else None
            probability = None if final is None else final.exp()
        for layer in lens.layers:
            with torch.enable_grad():
                hidden = lens.translated(chunk.by_layer[layer].to(lens.device), layer)
                log_probs = torch.log_softmax(model.readout(hidden).float(), dim=-1)
                total = _summed(log_probs, final, probability, chunk.next_ids)
                total.backward(inputs=lens.parameters_of(layer))  # not the model's own weights
            totals[layer] = totals.get(layer, 0) + total.detach()
    return len(states)


def _summed(log_probs: Tensor, final: Tensor | None, probability: Tensor | None, next_ids: Tensor) -> Tensor:
    """Summed KL to the final distribution where there is one, else summed cross-entropy; nats."""
    if final is None or probability is None:
        return functional.nll_loss(log_probs, next_ids.to(log_probs.device), reduction="sum")
    # A model may exclude tokens outright, with logits of minus infinity: 0 x infinity is nothing here.
    return torch.where(probability > 0, probability * (final - log_probs), 0.0).sum()

"""nnterp's attention-object lens by the walk of `interp.lenses.attention_object`, where the model allows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.compat.nnterp.probabilities import probabilities
from interp.compat.nnterp.walking import longest
from interp.errors import InterpError
from interp.lenses.attention_object import AttentionInputPlan, AttentionWindows
from interp.model import StandardizedTransformer
from interp.passes import in_turn
from interp.patching import PatchedPrompts, receiving_fits
from interp.patching.run import run

__all__ = ["attended_probs", "can_attend"]

_ROWS = 64


def can_attend(nn_model: Any, targets: Sequence[str | list[int]]) -> bool:
    """Whether a model is one of ours, all of whose layers have attention, and the walk fits it for these prompts."""
    return (
        isinstance(nn_model, StandardizedTransformer)
        and all(nn_model.has(f"attn_in.{layer}") for layer in range(nn_model.num_layers))
        and receiving_fits(nn_model, longest(nn_model, targets))
    )


@in_turn
@torch.no_grad()
def attended_probs(
    nn_model: StandardizedTransformer, targets: Sequence[str | list[int]], index: int, received: Tensor, num_layers: int
) -> Tensor:
    """Probabilities after target prompts while attention receives other vectors at one token, in layers from each on.

    Arguments:
        nn_model: the model.
        targets: the target prompts, texts or token ids.
        index: the token, counted in each prompt's own tokens; from the end where negative.
        received: (layer, 1 or target prompt, hidden), what attention of each layer receives.
        num_layers: in how many layers.

    Returns:
        (target prompt, layer, vocabulary), float32, on the CPU.

    Raises:
        InterpError: a token that a target prompt does not have.
    """
    ids: list[list[int]] = [
        nn_model.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt for prompt in targets
    ]
    for row, own in enumerate(ids):
        if not -len(own) <= index < len(own):
            raise InterpError(f"prompt {row} has {len(own)} tokens, none of them is token {index}.")
    windows = AttentionWindows.of(nn_model, None, num_layers)
    prompts = PatchedPrompts.of(
        nn_model,
        received.expand(-1, len(ids), -1),
        windows.attending,
        ids,
        [index % len(own) for own in ids],
        mapped=False,
    )
    order: list[int] = []
    parts = []
    for rows, (hidden, _) in run(AttentionInputPlan(prompts, windows), _ROWS):
        order += rows
        parts.append(hidden)
    by_layer = torch.cat(parts, dim=1)[:, torch.tensor(order, device="cpu").argsort()]  # (layer, target prompt, hidden)
    return probabilities(nn_model, by_layer.transpose(0, 1))

"""nnterp's patchscope lens by a walk up the layers (`interp.forward`), where the model allows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.compat.nnterp.target_prompts import TargetPromptBatch
from interp.errors import InterpError
from interp.forward import batches_alike, walk, walk_fits
from interp.model import StandardizedTransformer

__all__ = ["can_walk", "walked_probs"]

_ROWS = 64


def can_walk(nn_model: Any, layers: Sequence[int]) -> bool:
    """Whether a model is one of ours, and of a family that the walk fits; and each layer is asked for once."""
    return isinstance(nn_model, StandardizedTransformer) and len(set(layers)) == len(layers) and walk_fits(nn_model)


@torch.no_grad()
def walked_probs(
    nn_model: StandardizedTransformer, targets: TargetPromptBatch, latents: Mapping[int, Tensor]
) -> Tensor:
    """Probabilities after target prompts with a latent written into each, layer by layer.

    Arguments:
        nn_model: the model.
        targets: a target prompt a source.
        latents: layer -> (source, hidden), what is written after it.

    Returns:
        (source, layer, vocabulary), float32, on the CPU, layers in the order of `latents`.

    Raises:
        InterpError: an index that a target prompt does not have.
    """
    ids: list[list[int]] = [nn_model.tokenizer(prompt)["input_ids"] for prompt in targets.prompts]
    positions = [
        (_own(row, len(own), int(at)),) for row, (own, at) in enumerate(zip(ids, targets.index_to_patch, strict=True))
    ]
    layers = sorted(latents)
    order = [layers.index(layer) for layer in latents]
    probs: list[Tensor] = [torch.empty(0)] * len(ids)
    for rows in batches_alike(ids, positions, _ROWS, len(layers)):
        distinct = {tuple(ids[row]) for row in rows}
        fed = torch.tensor([ids[row] for row in rows[: 1 if len(distinct) == 1 else None]], device=nn_model.device)
        written = {
            layer: torch.stack([latent[row] for row in rows])[None, :, None].to(nn_model.device, nn_model.dtype)
            for layer, latent in latents.items()
        }
        hidden, _ = walk(nn_model, fed, positions[rows[0]], written, layers=layers)  # (layer, row, hidden)
        for row, states in zip(rows, hidden[order, 0].transpose(0, 1), strict=True):
            probs[row] = nn_model.readout(states).float().softmax(-1).cpu()
    return torch.stack(probs)


def _own(row: int, length: int, index: int) -> int:
    if not -length <= index < length:
        raise InterpError(f"prompt {row} has {length} tokens, none of them is token {index}.")
    return index % length

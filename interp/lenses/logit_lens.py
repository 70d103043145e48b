"""The logit lens: the model's own readout, applied to the residual stream after every layer.

nostalgebraist, "interpreting GPT: the logit lens" (2020),
https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.reading import check_lens_layers, read_layers
from interp.lenses.result import LensResult
from interp.readout import Groups, TokenGroups

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["logit_lens"]


@torch.no_grad()
def logit_lens(
    model: StandardizedTransformer,
    hidden: Tensor,
    groups: Groups,
    *,
    layers: Sequence[int],
    top_k: int = 5,
    batch_size: int = 256,
    reference: Tensor | None = None,
) -> LensResult:
    """Logit lens (nostalgebraist 2020): read hidden states of inner layers out as if they were the last layer's.

    The readout is the model's own tail, so the last layer gives the model's own prediction, also where that has a
    softcap (Gemma 2) or a scale (Cohere, Granite).

    Arguments:
        model: the model.
        hidden: (layer, example, hidden_size), residual streams, one token an example; any device and float dtype.
        groups: per example, per group: token ids whose probability is summed.
        layers: what the axis `layer` of `hidden` stands for, ascending.
        top_k: how many top tokens are kept.
        batch_size: examples that are read out at once; memory goes with batch_size x vocabulary.
        reference: (example, hidden_size), the residual stream after the model's last layer at the same token, which
            gives `surprisal` and `model_top_id`; None: not known.

    Returns:
        The lens over all examples; logarithms in nats.

    Raises:
        InterpError: shapes that do not fit, layers that the model does not have, token ids outside its vocabulary.
    """
    layers = check_lens_layers(layers, model.num_layers)
    examples = len(groups)
    expected = (len(layers), examples, model.hidden_size)
    if tuple(hidden.shape) != expected:
        raise InterpError(
            f"hidden: expected shape (layer, example, hidden_size) = {expected}, got {tuple(hidden.shape)}."
        )
    if reference is not None and tuple(reference.shape) != expected[1:]:
        raise InterpError(
            f"reference: expected shape (example, hidden_size) = {expected[1:]}, got {tuple(reference.shape)}."
        )
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
    padded = TokenGroups.pad(groups, model.vocab_size)
    parts = []
    for start in range(0, max(examples, 1), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(
            read_layers(
                model,
                hidden[:, rows],
                padded.rows(rows),
                layers=layers,
                top_k=top_k,
                reference=None if reference is None else reference[rows],
            )
        )
    return LensResult.concatenate(parts)

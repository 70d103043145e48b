"""The tuned lens: translate hidden states, then read them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.logit_lens import logit_lens
from interp.readout import Groups
from interp.results import LensResult
from interp.translators.tuned_lens import TunedLens

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["tuned_lens"]


@torch.no_grad()
def tuned_lens(
    model: StandardizedTransformer,
    lens: TunedLens,
    hidden: Tensor,
    groups: Groups,
    *,
    layers: Sequence[int],
    top_k: int = 5,
    batch_size: int = 256,
    reference: Tensor | None = None,
) -> LensResult:
    """Tuned lens (Belrose et al. 2023): translate hidden states of inner layers, then read them out as the last one's.

    Arguments:
        model: the model.
        lens: its tuned lens.
        hidden: (layer, example, hidden_size), residual streams after layers, one token an example; any device and
            float dtype.
        groups: per example, per group: token ids whose probability is summed.
        layers: what the axis `layer` of `hidden` stands for, ascending: layers of the lens, and the model's last,
            which is read as it is.
        top_k: how many top tokens are kept.
        batch_size: examples that are translated and read out at once; memory does not depend on their number.
        reference: (example, hidden_size), the residual stream after the model's last layer at the same token, which
            gives `surprisal` and `model_top_id`; None: not known.

    Returns:
        The lens over all examples; logarithms in nats.

    Raises:
        InterpError: shapes that do not fit, layers that lens or model do not have, token ids outside the vocabulary.
    """
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
    if hidden.dim() != 3 or hidden.shape[1] != len(groups):
        raise InterpError(
            f"hidden: expected shape (layer, example, hidden_size) with {len(groups)} examples, as many as groups, got "
            f"{tuple(hidden.shape)}."
        )
    if reference is not None and tuple(reference.shape) != tuple(hidden.shape[1:]):
        raise InterpError(
            f"reference: expected shape (example, hidden_size) = {tuple(hidden.shape[1:])}, got "
            f"{tuple(reference.shape)}."
        )
    parts = []
    for start in range(0, max(len(groups), 1), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(
            logit_lens(
                model,
                lens.translate(hidden[:, rows], layers),
                groups[rows],
                layers=layers,
                top_k=top_k,
                batch_size=batch_size,
                reference=None if reference is None else reference[rows],
            )
        )
    return LensResult.concatenate(parts)

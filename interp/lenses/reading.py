"""The reading of hidden states that every lens shares."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.result import Floats, LensResult
from interp.readout import TokenGroups, log_probabilities, reduce_logits

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["check_lens_layers", "read_layers"]


def check_lens_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The layers of a lens, checked: at least one, ascending, each once, in the model.

    Raises:
        InterpError: they are not.
    """
    layers = tuple(int(layer) for layer in layers)
    if not layers or any(b <= a for a, b in pairwise(layers)):
        raise InterpError(f"layers: expected layers in ascending order, each once, got {list(layers)}.")
    if layers[0] < 0 or layers[-1] >= num_layers:
        raise InterpError(f"layers: expected layers of the model, 0 to {num_layers - 1}, got {list(layers)}.")
    return layers


def read_layers(
    model: StandardizedTransformer,
    hidden: Tensor,
    groups: TokenGroups,
    *,
    layers: tuple[int, ...],
    top_k: int,
    reference: Tensor | None,
    baseline: Floats | None = None,
    inverted: bool = False,
) -> LensResult:
    """Read one batch of hidden states out through the model's own tail, layer by layer.

    At any time the logits of one layer are held, and the log-probabilities of the last layer and of the model itself.

    Arguments:
        model: the model.
        hidden: (layer, row, hidden_size), residual streams.
        groups: the token groups of the rows.
        layers: what the axis `layer` of `hidden` stands for; the last one is what `kl` compares with.
        top_k: how many top tokens are kept.
        reference: (row, hidden_size), the residual stream after the model's last layer at the source position, which
            gives p_model; None: not known.
        baseline: goes into the result as it is.
        inverted: turn the sign after the final norm (of `hidden`, not of `reference`).

    Returns:
        The result for these rows.
    """
    rows = hidden.shape[1]
    last_log_probs = log_probabilities(model.readout(hidden[-1], negate=inverted))  # (row, vocabulary)
    device = last_log_probs.device
    groups = groups.to(device)
    reduced = [
        reduce_logits(model.readout(layer_hidden, negate=inverted), groups, top_k, kl_reference=last_log_probs)
        for layer_hidden in hidden
    ]
    del last_log_probs
    top_ids = torch.stack([layer.top_ids for layer in reduced], dim=1)  # (row, layer, k)
    if reference is None:
        surprisal = torch.full((rows, len(layers)), torch.nan)
        model_top_id = torch.full((rows,), -1, dtype=torch.int32)
    else:
        logits = model.readout(reference)
        none = TokenGroups.pad([[]] * rows, logits.shape[-1], device)
        model_top_id = reduce_logits(logits, none, 1).top_ids[:, 0]
        surprisal = -log_probabilities(logits).gather(1, top_ids[:, :, 0].long())  # (row, layer)
    return LensResult(
        coordinates={"example": range(rows), "layer": layers},
        log_prob=_stacked([layer.log_prob for layer in reduced]),
        rank=_stacked([layer.rank for layer in reduced]),
        top_ids=top_ids.cpu().numpy(),
        top_log_prob=_stacked([layer.top_log_prob for layer in reduced]),
        entropy=_stacked([layer.entropy for layer in reduced]),
        kl=_stacked([layer.kl for layer in reduced if layer.kl is not None]),
        surprisal=surprisal.cpu().numpy(),
        model_top_id=model_top_id.cpu().numpy(),
        baseline=baseline,
    )


def _stacked(by_layer: list[Tensor]) -> NDArray:
    return torch.stack(by_layer, dim=1).cpu().numpy()

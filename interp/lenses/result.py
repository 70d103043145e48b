"""What a lens returns, and the reading of hidden states that every lens shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.errors import InterpError
from interp.readout import TokenGroups, log_probabilities, reduce_logits

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["LensResult", "check_lens_layers", "read_layers"]

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


@dataclass(frozen=True)
class LensResult:
    """One lens over some examples and layers. All logarithms are natural (nats), all floats float32.

    Arguments:
        layers: the layers, ascending: what the axis `layer` stands for.
        log_prob: (example, layer, group), log of the summed probability of a group's distinct tokens; NaN: empty group.
        rank: (example, layer, group), how many tokens stand above the group's best one; -1: empty group.
        top_ids: (example, layer, k), the most probable tokens, best first.
        top_log_prob: (example, layer, k), their log-probabilities.
        entropy: (example, layer).
        kl: (example, layer), KL(the lens at the last of `layers` || the lens at this layer).
        surprisal: (example, layer), -ln p_model(the lens's most probable token), where p_model is what the model itself
            says at the source position (Ghandeharioun et al. 2024); NaN where that is not known.
        model_top_id: (example,), the most probable token of p_model; -1 where it is not known.
        baseline: (example, group), log-probability of the groups after the unpatched target prompt; None for a lens
            that has no target prompt.
    """

    layers: tuple[int, ...]
    log_prob: Floats
    rank: Integers
    top_ids: Integers
    top_log_prob: Floats
    entropy: Floats
    kl: Floats
    surprisal: Floats
    model_top_id: Integers
    baseline: Floats | None = None

    def arrays(self) -> dict[str, Floats | Integers]:
        """The arrays by name, without those that this lens does not have."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "layers"}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def concatenate(cls, parts: Sequence[LensResult], order: Sequence[int] | None = None) -> LensResult:
        """Put results over different examples of the same lens together.

        Arguments:
            parts: at least one result.
            order: for each example of the parts, in turn, its place in the whole; None: as they come.
        """
        rows = np.arange(sum(len(part.model_top_id) for part in parts)) if order is None else np.argsort(order)
        whole = {name: np.concatenate([part.arrays()[name] for part in parts])[rows] for name in parts[0].arrays()}
        return cls(parts[0].layers, **whole)


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

    Returns:
        The result for these rows.
    """
    rows = hidden.shape[1]
    last_log_probs = log_probabilities(model.readout(hidden[-1]))  # (row, vocabulary)
    device = last_log_probs.device
    groups = groups.to(device)
    reduced = [
        reduce_logits(model.readout(layer_hidden), groups, top_k, kl_reference=last_log_probs)
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
        layers=layers,
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

"""What a lens returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

__all__ = ["LensResult"]

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

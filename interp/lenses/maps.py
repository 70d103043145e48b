"""Maps between hidden states: what stands between a source's layer and the layer that it is written at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["LatentMap"]


class LatentMap(Protocol):
    """Turns hidden states of a source model's layers into hidden states of a target model."""

    def __call__(self, latents: Tensor, layers: Sequence[int]) -> Tensor:
        """Map latents.

        Arguments:
            latents: (layer, row, hidden of the source model).
            layers: the source's layers that the first axis stands for.

        Returns:
            (layer, row, hidden of the target model).
        """
        ...

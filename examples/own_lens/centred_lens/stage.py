"""What stage `lens` runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from centred_lens.config import CentredLensConfig
from pipeline.stages.lens.inputs import Inputs, StoredLatents
from pipeline.stages.lens.kinds.logit_lens import LogitLens

CHUNK = 256  # prompts whose states are held at once


@dataclass(frozen=True)
class CentredLatents(StoredLatents):
    """Hidden states less a constant one of each layer.

    Arguments:
        shift: (layer, 1, hidden), what is taken away.
    """

    shift: Tensor

    def read(self, sources: Sequence[Sequence[int]]) -> Tensor:
        """(layer, example, hidden) float32, the centred states of some examples."""
        return super().read(sources) - self.shift


class CentredLens(LogitLens):
    """The logit lens on centred states; all else is the logit lens's."""

    config: CentredLensConfig

    def __init__(self, name: str, config: CentredLensConfig, inputs: Inputs) -> None:
        super().__init__(name, config, inputs)
        shift = config.strength * mean_state(self.latents, self.examples.sources)
        self.latents = CentredLatents(**vars(self.latents), shift=shift)


def mean_state(latents: StoredLatents, sources: Sequence[Sequence[int]]) -> Tensor:
    """The mean over examples, by layer.

    Arguments:
        latents: the states.
        sources: per example: rows of `prompts`.

    Returns:
        (layer, 1, hidden) float32.
    """
    chunks = [sources[start : start + CHUNK] for start in range(0, len(sources), CHUNK)]
    total = torch.stack([latents.read(chunk).double().sum(dim=1, keepdim=True) for chunk in chunks]).sum(dim=0)
    return (total / len(sources)).float()

"""What is kept of the logits of some rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["Reduced"]


@dataclass(frozen=True)
class Reduced:
    """What is kept of the logits of some rows. All logarithms are natural.

    `rows` stands for one axis, or for (layer, row) where hidden states of several layers were read.

    Arguments:
        log_prob: (rows, groups) float32, log of the summed probability of a group's distinct tokens; NaN where the
            group is empty.
        rank: (rows, groups) int32, how many tokens stand above the group's best one; -1 where the group is empty.
            Equal logits stand in the order of their ids, here and in `top_ids`: rank 0 says that `top_ids[0]` is in
            the group.
        top_ids: (rows, k) int32, the most probable tokens, best first.
        top_log_prob: (rows, k) float32, their log-probabilities.
        entropy: (rows,) float32, in nats.
        kl: (rows,) float32, in nats: KL(reference || row); None where no reference was given.
        log_mass: (rows, sets) float32, log of the probability of sets of tokens that all rows share; None where no
            sets were given.
    """

    log_prob: Tensor
    rank: Tensor
    top_ids: Tensor
    top_log_prob: Tensor
    entropy: Tensor
    kl: Tensor | None = None
    log_mass: Tensor | None = None

    def __getitem__(self, index: int | slice | tuple[int | slice, ...]) -> Reduced:
        """Some of the rows."""
        return Reduced(**{name: value[index] for name, value in self._arrays().items()})

    def swapped(self) -> Reduced:
        """(row, layer) as (layer, row), and the other way round."""
        return Reduced(**{name: value.transpose(0, 1).contiguous() for name, value in self._arrays().items()})

    @classmethod
    def concatenate(cls, parts: Sequence[Reduced], dim: int = 0) -> Reduced:
        """Put the readings of different rows together along an axis of the rows."""
        arrays = [part._arrays() for part in parts]
        return cls(**{name: torch.cat([part[name] for part in arrays], dim=dim) for name in arrays[0]})

    def _arrays(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

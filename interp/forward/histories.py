"""Which runs compute the same: those that have written the same so far, up to the layers that they are patched at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Histories"]


@dataclass(frozen=True)
class Histories:
    """What runs of one prompt have written behind it, each text once.

    A patch changes nothing up to its layer. So there, a run's new tokens are told apart by what it has written alone,
    and runs with one history are one row; above it, each run is a row by itself. In every layer the rows are: runs that
    are by themselves, in order, then histories that some run still shares.

    Arguments:
        joins: (run,) ascending, the last layer that a run shares; -1: none.
        of_run: (run,), its history.
        tops: (history,) descending, the last layer that a run of it shares.
    """

    joins: Tensor
    of_run: Tensor
    tops: Tensor

    @classmethod
    def of(cls, joins: Tensor) -> Histories:
        """Runs that have not written yet: one history.

        Arguments:
            joins: (run,) ascending.
        """
        return cls(joins, torch.zeros_like(joins), joins[-1:])

    def written(self, tokens: Tensor) -> tuple[Histories, Tensor]:
        """The histories after one more token each.

        Arguments:
            tokens: (run,).

        Returns:
            The histories, and the one that each goes on from, (history,).
        """
        return self._grouped(self.joins, self.of_run, tokens)

    def kept(self, runs: Tensor) -> tuple[Histories, Tensor]:
        """The histories of some runs, ascending, and which each was, (history,)."""
        return self._grouped(self.joins[runs], self.of_run[runs], torch.zeros_like(runs))

    @staticmethod
    def _grouped(joins: Tensor, before: Tensor, tokens: Tensor) -> tuple[Histories, Tensor]:
        distinct, group = torch.unique(torch.stack([before, tokens]), dim=1, return_inverse=True)
        tops = torch.full((distinct.shape[1],), -1, device="cpu").scatter_reduce(0, group, joins, "amax")
        tops, order = tops.sort(descending=True, stable=True)
        return Histories(joins, order.argsort()[group], tops), distinct[0, order]

    def alone(self, layer: int) -> int:
        """How many runs, the first ones, are by themselves in a layer."""
        return int((self.joins < layer).sum())

    def shared(self, layer: int) -> int:
        """How many histories, the first ones, some run shares in a layer."""
        return int((self.tops >= layer).sum())

    @cached_property
    def _members(self) -> Tensor:
        """(history,), a run of each."""
        members = torch.empty_like(self.tops)
        members[self.of_run] = torch.arange(len(self.of_run), device="cpu")
        return members

    def fed(self, tokens: Tensor) -> Tensor:
        """(row,), the tokens of the rows in layer 0, of (run,)."""
        return torch.cat([tokens[: self.alone(0)], tokens[self._members[: self.shared(0)]]])

    def entering(self, layer: int) -> Tensor:
        """(row,), the rows of the layer before that the rows of a layer go on from; `layer` may be one past the last,
        where every run is by itself."""
        before, now = self.alone(layer - 1), self.alone(layer)
        return torch.cat(
            [
                torch.arange(before, device="cpu"),
                before + self.of_run[before:now],
                before + torch.arange(self.shared(layer), device="cpu"),
            ]
        )

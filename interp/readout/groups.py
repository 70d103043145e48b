"""The token ids that count as an answer in each row (`TokenGroups`); the numbers kept of a row's logits (`Reduced`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError

__all__ = ["Groups", "Reduced", "TokenGroups"]


Groups = Sequence[Sequence[Sequence[int]]]
"""Per row, per group: token ids. Every row has the same number of groups; a group may be empty."""


@dataclass(frozen=True)
class TokenGroups:
    """Groups of token ids as index tensors, made once and used for every layer.

    Arguments:
        ids: (rows, groups, width) int64, padded with 0.
        valid: (rows, groups, width) bool, true once for each distinct token of the group.
    """

    ids: Tensor
    valid: Tensor

    @classmethod
    def pad(cls, groups: Groups, vocab_size: int, device: torch.device | str = "cpu") -> TokenGroups:
        """Pad lists of token ids into index tensors; repeated tokens of a group count once.

        Arguments:
            groups: per row, per group: token ids.
            vocab_size: number of entries of the logits that the ids index.
            device: where the index tensors are needed.

        Raises:
            InterpError: no lists of lists of ids, rows with different numbers of groups, or an id outside the
                vocabulary.
        """
        if not all(isinstance(row, Collection) and all(isinstance(ids, Collection) for ids in row) for row in groups):
            raise InterpError(
                "groups: expected for each row a list of groups, each a list of token ids, e.g. [[[5, 7], [9]]] for "
                f"one row with two groups, got {groups!r:.80}."
            )
        counts = sorted({len(row) for row in groups})
        if len(counts) > 1:
            raise InterpError(
                f"expected the same number of groups in every row, got rows with {counts} groups. "
                "Where a row has no tokens for a group, give it an empty list there."
            )
        shape = (len(groups), counts[0] if counts else 0)
        cells = list(chain.from_iterable(groups))
        lengths = np.fromiter(map(len, cells), dtype=np.int64, count=len(cells))
        flat = np.fromiter(chain.from_iterable(cells), dtype=np.int64, count=int(lengths.sum()))
        if flat.size and not (flat.min() >= 0 and flat.max() < vocab_size):
            bad = int(flat.min() if flat.min() < 0 else flat.max())
            raise InterpError(
                f"token id {bad} is outside the vocabulary of the model (0 to {vocab_size - 1}). "
                "Were the groups made with another model's tokenizer?"
            )
        width = max(int(lengths.max(initial=0)), 1)
        filled = np.arange(width) < lengths[:, None]  # (cells, width)
        ids = np.full(filled.shape, vocab_size, dtype=np.int64)  # above every id: padding sorts to the end
        ids[filled] = flat
        ids.sort(axis=1)
        valid = ids < vocab_size
        valid[:, 1:] &= ids[:, 1:] != ids[:, :-1]
        ids[~valid] = 0
        return cls(
            torch.from_numpy(ids.reshape(*shape, width)).to(device),
            torch.from_numpy(valid.reshape(*shape, width)).to(device),
        )

    def __len__(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> TokenGroups:
        """The same groups on another device."""
        return TokenGroups(self.ids.to(device), self.valid.to(device))

    def rows(self, rows: slice | Tensor) -> TokenGroups:
        """The groups of some rows."""
        return TokenGroups(self.ids[rows], self.valid[rows])


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

"""Which token ids count as an answer, row by row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError

__all__ = ["Groups", "TokenGroups"]

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

"""The logits of the tokens in groups, known before the rest of the vocabulary goes by.

Ranks count the tokens above a group's best one, so its logit must be known first. It comes from a product with those
tokens' rows of the head alone, which may round otherwise than the product with a whole chunk. So that there is one
logit for each token, these are then written over the chunk's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.readout.groups import TokenGroups
from interp.readout.order import LOWEST, keys_of

__all__ = ["Members", "Places"]


class Members:
    """The tokens of the groups of some rows, with their logits."""

    def __init__(self, groups: TokenGroups, logits: Tensor) -> None:
        """Arguments: groups of the rows; logits (row, layer, groups * width) float32 of `groups.ids`."""
        self.groups = groups
        self.logits = logits.gather(-1, _first_of_each(groups)[:, None].expand(logits.shape))
        self.shape = (*logits.shape[:2], *groups.ids.shape[1:])  # (row, layer, group, width)
        keys = keys_of(self.logits, groups.ids.flatten(1)[:, None]).view(self.shape)
        self.best = keys.masked_fill(~groups.valid[:, None], LOWEST).amax(dim=-1)  # (row, layer, group)

    @property
    def empty(self) -> Tensor:
        """(row, 1, group) bool: groups without tokens."""
        return ~self.groups.valid.any(dim=-1)[:, None]

    def log_sum_exp(self) -> Tensor:
        """(row, layer, group) float64, log of the summed exponentials of each group's logits; -inf: an empty group."""
        logits = self.logits.view(self.shape).double()
        return logits.masked_fill(~self.groups.valid[:, None], -torch.inf).logsumexp(dim=-1)

    def write(self, chunk: Tensor, places: tuple[Tensor, Tensor, Tensor]) -> None:
        """Write the logits over those of a chunk.

        Arguments:
            chunk: (row, layer, tokens).
            places: of the members in the chunk: the row, the place in the chunk, the place among the row's members.
        """
        row, place, member = places
        if len(row):
            chunk[row, :, place] = self.logits[row, :, member]


class Places:
    """Where in the chunks the members lie: found for all blocks of rows and all chunks at once.

    On an accelerator, a question about the groups within the loop over the chunks would make it wait.
    """

    def __init__(self, groups: TokenGroups, block: int, starts: Sequence[int], vocabulary: int) -> None:
        """Arguments: block, how many rows are read at once; starts, the first token of each chunk."""
        rows, width = groups.ids.shape[0], groups.ids.shape[1] * groups.ids.shape[2]
        ids = groups.ids.masked_fill(~groups.valid, vocabulary).flatten()
        row = torch.arange(rows, device=ids.device).repeat_interleave(width)
        keys, order = ((row // block) * (vocabulary + 1) + ids).sort()
        blocks = range(0, max(rows, 1), block)
        bounds = [index * (vocabulary + 1) + start for index in range(len(blocks)) for start in (*starts, vocabulary)]
        found = torch.searchsorted(keys, torch.tensor(bounds, dtype=keys.dtype, device=keys.device)).tolist()
        self._bounds = [found[i * (len(starts) + 1) : (i + 1) * (len(starts) + 1)] for i in range(len(blocks))]
        self._row, self._ids, self._member = row[order] % block, ids[order], order % max(width, 1)

    def to(self, device: torch.device) -> Places:
        """The same places on another device."""
        self._row, self._ids, self._member = (x.to(device) for x in (self._row, self._ids, self._member))
        return self

    def of(self, block: int, chunk: int, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """What `Members.write` takes, for one chunk of one block of rows; `start` is the chunk's first token."""
        found = slice(self._bounds[block][chunk], self._bounds[block][chunk + 1])
        return self._row[found], self._ids[found] - start, self._member[found]


def _first_of_each(groups: TokenGroups) -> Tensor:
    """(row, groups * width): for each member the place where the same token stands first among its row's members.

    Two products with the same row of the head may differ in their last bit.
    """
    ids = groups.ids.flatten(1)
    ordered, order = ids.sort(dim=1, stable=True)
    start = torch.ones_like(ordered, dtype=torch.bool)
    start[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    first = torch.where(start, places, 0).cummax(dim=1).values if ids.shape[1] else places
    return torch.empty_like(order).scatter_(1, order, order.gather(1, first))

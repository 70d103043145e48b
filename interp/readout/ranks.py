"""Orders tokens by logit, equal logits by id: a total order, the same on every device, exact in chunks.

`topk` leaves the order of equal values open, and bfloat16 logits have many. So a logit and its token become one
integer, a key: the larger the key, the further up the token.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BLOCK", "LOWEST", "Ranks", "TopTokens", "keyed_ids", "keyed_values", "keys_of"]

# Adjacent tokens whose maximum is taken first: the best k tokens lie in the best k blocks.
BLOCK = 64
LOWEST = torch.iinfo(torch.int64).min  # below every key
_LOW = (1 << 31) - 1


def keys_of(values: Tensor, ids: Tensor) -> Tensor:
    """Keys of tokens: int64, in the order of the values, equal ones in the order of their ids.

    Arguments:
        values: (...) float32 logits.
        ids: (...) int64, below 2^31; broadcast against `values`.
    """
    bits = (values + 0.0).view(torch.int32)  # a copy, in which minus zero has become zero
    bits ^= (bits >> 31) & _LOW  # IEEE 754 bits as integers of the same order: negative ones are turned round
    keys = bits.to(torch.int64)
    keys <<= 32
    keys += _LOW - ids
    return keys


def keyed_values(keys: Tensor) -> Tensor:
    """The logits that keys were made from, float32."""
    bits = (keys >> 32).to(torch.int32)
    return (bits ^ ((bits >> 31) & _LOW)).view(torch.float32)


def keyed_ids(keys: Tensor) -> Tensor:
    """The token ids that keys were made from, int64."""
    return _LOW - (keys & 0xFFFFFFFF)


class TopTokens:
    """The best k tokens of each row, updated with every chunk of the vocabulary.

    The k best tokens lie in the k blocks whose best tokens are best, blocks of equal maxima in the order of their ids:
    any other block has k tokens above all of its own. So few tokens ever get a key.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.keys: Tensor | None = None  # (rows, k), best first

    def add(self, blocks: Tensor, peaks: Tensor, start: int) -> None:
        """See a chunk.

        Arguments:
            blocks: (rows, blocks, BLOCK) float32 logits.
            peaks: (rows, blocks), their maxima.
            start: id of the chunk's first token.
        """
        if self.keys is None:
            keys = self._best(blocks, peaks, start)
        elif self.keys.shape[1] == self.k and _may_ask(blocks.device):
            keys = torch.cat([self.keys, _better(self.keys[:, -1], blocks, peaks, start)], dim=1)
        else:
            keys = torch.cat([self.keys, self._best(blocks, peaks, start)], dim=1)
        self.keys = keys.topk(min(self.k, keys.shape[1]), dim=1).values

    def _best(self, blocks: Tensor, peaks: Tensor, start: int) -> Tensor:
        """(rows, n) keys of all tokens in the best k blocks."""
        rows, count, _ = blocks.shape
        order = torch.arange(count, device=blocks.device).expand(rows, count)
        if count > self.k:
            order = keys_of(peaks, order).topk(self.k, dim=1).indices
            first = torch.arange(rows, device=blocks.device)[:, None] * count
            blocks = blocks.view(-1, BLOCK).index_select(0, (order + first).flatten()).view(rows, self.k, BLOCK)
        ids = start + order[..., None] * BLOCK + torch.arange(BLOCK, device=blocks.device)
        return keys_of(blocks, ids).flatten(1)


def _may_ask(device: torch.device) -> bool:
    """Whether asking how many tokens are better costs nothing: an accelerator would have to finish its work first."""
    return device.type == "cpu"


def _better(worst: Tensor, blocks: Tensor, peaks: Tensor, start: int) -> Tensor:
    """(rows, n) keys of the tokens that are better than the worst that is kept, and below them nothing.

    Arguments:
        worst: (rows,) keys of tokens of earlier chunks.
        blocks, peaks, start: as in `TopTokens.add`.
    """
    rows, count, _ = blocks.shape
    least = keyed_values(worst)
    row, block = (peaks > least[:, None]).nonzero(as_tuple=True)  # an equal logit of a later id is worse
    values = blocks.view(-1, BLOCK).index_select(0, row * count + block)
    which, place = (values > least[row, None]).nonzero(as_tuple=True)
    row = row[which]  # ascending
    found = keys_of(values[which, place], start + block[which] * BLOCK + place)
    numbers = torch.bincount(row, minlength=rows)
    first = numbers.cumsum(0) - numbers
    keys = found.new_full((rows, int(numbers.max()) if rows else 0), LOWEST)
    keys[row, torch.arange(len(row), device="cpu") - first[row]] = found
    return keys


class Ranks:
    """The ranks of certain tokens: how many tokens are above each, counted chunk by chunk."""

    def __init__(self, keys: Tensor) -> None:
        """Arguments: keys (rows, groups) of the tokens whose ranks are counted."""
        self.values, self.ids = keyed_values(keys), keyed_ids(keys)
        self.above = torch.nextafter(self.values, torch.full_like(self.values, torch.inf))
        self.counts = torch.zeros_like(keys)

    def begin(self, start: int, count: int) -> None:
        """Begin a chunk of `count` blocks, whose first token is `start`."""
        ends = start + BLOCK * torch.arange(1, count + 1, device=self.ids.device)
        # Of equal logits, those in blocks before the token's own stand above it, those in later ones do not.
        before = ends <= self.ids[..., None]
        self._least = torch.where(before, self.values[..., None], self.above[..., None])  # (rows, groups, blocks)
        self._found = torch.empty(self.counts.shape, device=self.ids.device, dtype=torch.float32)
        self._start = start

    def add(self, rows: slice, blocks: Tensor, scratch: Tensor) -> None:
        """Count in the chunk of some rows, all but ties in a token's own block.

        Arguments:
            rows: which rows.
            blocks: (rows, blocks, BLOCK) float32 logits.
            scratch: room of that shape, written over.
        """
        for group in range(self.counts.shape[1]):
            torch.ge(blocks, self._least[rows, group, :, None], out=scratch)  # 0.0 and 1.0: summed faster than booleans
            torch.sum(scratch, dim=(1, 2), out=self._found[rows, group])

    def end(self, blocks: Tensor) -> None:
        """End the chunk, all rows of it, with equal logits of lower ids in a token's own block."""
        rows, count, _ = blocks.shape
        own = (self.ids - self._start).div(BLOCK, rounding_mode="floor")
        inside = (own >= 0) & (own < count)
        first = torch.arange(rows, device=blocks.device)[:, None] * count
        flat = (first + own.clamp(0, count - 1)).flatten()
        values = blocks.reshape(-1, BLOCK).index_select(0, flat).view(*self.ids.shape, BLOCK)
        lower = torch.where(inside, self.ids - self._start - own * BLOCK, 0)[..., None]  # so many ids of the block
        equal = (values == self.values[..., None]) & (torch.arange(BLOCK, device=blocks.device) < lower)
        self.counts += equal.sum(dim=2) + self._found.to(torch.int64)

"""Index of what one block of prompts reads: prompts, their positions, the sites."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.prompts import Media
from interp.sites import MAP_KINDS, Site

__all__ = ["Block", "Entries", "checked_block", "checked_sites"]


@dataclass(frozen=True)
class Entries:
    """Index of each value read in one pass: (row, column) in the batch, (prompt, slot) in the block.

    Arguments:
        rows, columns: row and column of the batch, each (entry,).
        prompts, places: the prompt of the block, and which of its positions that is, each (entry,).
    """

    rows: Tensor
    columns: Tensor
    prompts: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def in_one_row(self) -> Entries:
        """The same of a batch whose rows are all alike, and so is one."""
        return replace(self, rows=torch.zeros_like(self.rows))

    def moved(self, by: Sequence[int]) -> Entries:
        """The same of a batch whose rows are moved to the right, each by a number of columns."""
        return replace(self, columns=self.columns + torch.tensor(by, device="cpu")[self.rows])


@dataclass(frozen=True)
class Block:
    """A block of prompts: which tokens are read of each, and the arrays that they fill.

    Arguments:
        input_ids: token ids of each, unpadded.
        table: (prompt, position), the tokens that are read; -1: none.
        rows_of_kind: kind -> site -> index along the layer axis.
        media: what each is fed beside its ids; such a prompt is run whole.
        causal: what follows a token leaves it as it is, so that it may be left away, or be anything.
    """

    input_ids: list[list[int]]
    table: Tensor
    rows_of_kind: dict[str, dict[Site, int]]
    media: Sequence[Media | None]
    causal: bool = False
    _values: dict[str, Tensor] = field(default_factory=dict)

    @property
    def needed(self) -> list[int]:
        """Tokens of each prompt up to the last one that is read."""
        return (self.table.amax(dim=1) + 1).tolist()

    @property
    def rows(self) -> list[int]:
        """The prompts of which anything is read."""
        return [row for row, tokens in enumerate(self.needed) if tokens]

    @property
    def seeing(self) -> list[int]:
        """Those of them that have images."""
        return [row for row in self.rows if self.media[row] is not None]

    @property
    def is_even(self) -> bool:
        """Whether all prompts are of one length, and read up to their last token."""
        return {len(ids) for ids in self.input_ids} == set(self.needed) and len(set(self.needed)) == 1

    def cut(self, keep: Collection[int]) -> Block:
        """The same for a causal model: prompts end with the last token that is read, but for some that stay whole."""
        ends = enumerate(zip(self.input_ids, self.needed, strict=True))
        cut = [ids if row in keep else ids[:tokens] for row, (ids, tokens) in ends]
        return replace(self, input_ids=cut, causal=True)

    def entries(self, batch: Sequence[int], start: int, stop: int | None = None) -> Entries:
        """What is read of some prompts' tokens from `start` to `stop`, fed as rows whose first column is `start`."""
        table = self.table[batch]
        wanted = table >= start if stop is None else (table >= start) & (table < stop)
        rows, places = wanted.nonzero(as_tuple=True)
        return Entries(rows, table[rows, places] - start, torch.tensor(batch, device="cpu")[rows], places)

    def keep(self, sites: Sequence[Site], entries: Entries, values: Sequence[Tensor]) -> None:
        """Put values that were read into the block's arrays.

        Arguments:
            sites: whose it is.
            entries: where it is from.
            values: (entry, hidden) of each site; (entry, head, ...) of a site with all its heads. Of `scores` and
                `pattern` the last axis is the prompt's own tokens, and what lies beyond them counts for nothing.

        Raises:
            InterpError: layers of one kind differ in width or heads.
        """
        for site, read in zip(sites, values, strict=True):
            layers = self.rows_of_kind[site.kind]
            is_map = site.kind in MAP_KINDS
            width = (*read.shape[1:-1], self.longest if is_map else read.shape[-1])
            if site.kind not in self._values:
                shape = (len(layers), *self.table.shape, *width)
                self._values[site.kind] = torch.full(shape, float("nan"), dtype=read.dtype, device="cpu")
            kept = self._values[site.kind]
            if width != kept.shape[3:]:
                raise InterpError(
                    f"{site} has {_numbers(width)} numbers at a position, other layers have "
                    f"{_numbers(kept.shape[3:])}: collect layers of one width at a time."
                )
            place = (layers[site], entries.prompts, entries.places)
            if not is_map:
                kept[place] = read
                continue
            own = torch.tensor([len(self.input_ids[prompt]) for prompt in entries.prompts.tolist()], device="cpu")
            beyond = torch.arange(read.shape[-1], device="cpu") >= own.view(-1, *[1] * (read.dim() - 1))
            filled = torch.full((len(read), *width), float("nan"), dtype=read.dtype, device="cpu")
            filled[..., : read.shape[-1]] = read.masked_fill(beyond, float("nan"))
            kept[place] = filled

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(ids) for ids in self.input_ids)

    def values(self) -> dict[str, Tensor]:
        """By kind, (layer, prompt, position, ...), NaN where there is no position."""
        return {kind: self._values[kind] for kind in self.rows_of_kind}


def _numbers(width: Sequence[int]) -> str:
    """`64`, or `4 x 8` of heads."""
    return " x ".join(map(str, width))


def checked_sites(sites: Sequence[Site]) -> dict[str, dict[Site, int]]:
    """Check sites, and give each its place: kind -> site -> index along the layer axis.

    Raises:
        InterpError: there is none, one twice, or one kind both with all heads and with one.
    """
    if not sites:
        raise InterpError("expected prompts and sites, got 0 sites.")
    rows_of_kind: dict[str, dict[Site, int]] = {}
    for site in sites:
        rows = rows_of_kind.setdefault(site.kind, {})
        if site in rows:
            raise InterpError(f"site {site} is asked for twice.")
        if rows and (next(iter(rows)).head is None) != (site.head is None):
            raise InterpError(
                f"{site.kind}: expected sites with all heads, or of one each; got {next(iter(rows))} and {site}."
            )
        rows[site] = len(rows)
    return rows_of_kind


def checked_block(
    input_ids: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    rows_of_kind: dict[str, dict[Site, int]],
    media: Sequence[Media | None] | None = None,
) -> Block:
    """Check prompts and positions, and make them a block.

    Raises:
        InterpError: no prompt, an empty one, positions of other prompts, outside their prompt, or none at all; media of
            other prompts.
    """
    if not input_ids:
        raise InterpError("expected prompts and sites, got 0 prompts.")
    if len(positions) != len(input_ids):
        raise InterpError(f"expected positions for {len(input_ids)} prompts, got {len(positions)}.")
    media = [None] * len(input_ids) if media is None else list(media)
    _check_media(input_ids, media)
    table = torch.full((len(positions), max(len(row) for row in positions)), -1, dtype=torch.long, device="cpu")
    for row, (ids, indices) in enumerate(zip(input_ids, positions, strict=True)):
        if not len(ids):
            raise InterpError(f"prompt {row} has no tokens.")
        bad = [index for index in indices if not -1 <= index < len(ids)]
        if bad:
            raise InterpError(
                f"prompt {row} has {len(ids)} tokens, position {bad[0]} is none of them. Expected 0..{len(ids) - 1}, "
                "or -1 for none; `interp.positions` resolves positions that count from the end."
            )
        table[row, : len(indices)] = torch.as_tensor(indices, dtype=torch.long, device="cpu")
    if not (table >= 0).any():
        raise InterpError("expected at least one position in one prompt, got none.")
    return Block([list(ids) for ids in input_ids], table, rows_of_kind, media)


def _check_media(input_ids: Sequence[Sequence[int]], media: Sequence[Media | None]) -> None:
    if len(media) != len(input_ids):
        raise InterpError(f"media: expected an entry for each of {len(input_ids)} prompts (or None), got {len(media)}.")
    for row, (ids, one) in enumerate(zip(input_ids, media, strict=True)):
        if one is not None and not isinstance(one, Media):
            raise InterpError(
                f"media: expected what `interp.prompts.encode_with_images` gives (`Encoded.media`) or None, got "
                f"{one!r:.80} for prompt {row}."
            )
        for name, numbers in {} if one is None else one.by_token.items():
            if len(numbers) != len(ids):
                raise InterpError(
                    f"media: prompt {row} has {len(ids)} tokens, and {len(numbers)} {name}. Are they of another prompt?"
                )

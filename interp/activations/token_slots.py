"""Tokens of prompts along an axis: which token of each prompt stands at each place, under which name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from interp.positions import Position
from interp.prompts import Encoded

__all__ = ["TokenSlots"]


@dataclass(frozen=True)
class TokenSlots:
    """Named positions of some prompts, as an axis: each name has as many slots as its longest prompt needs.

    Arguments:
        positions: what is named, in the order of the axis.
        tokens: by example and position, the tokens of the prompt, from 0, padding left out.
        widths: slots of each position; None: as many as these examples need.
    """

    positions: tuple[Position, ...]
    tokens: tuple[tuple[tuple[int, ...], ...], ...]
    widths: tuple[int, ...]

    @classmethod
    def of(
        cls,
        positions: Sequence[Position],
        encoded: Sequence[Encoded],
        spans: Sequence[Mapping[str, Any]] | None = None,
    ) -> TokenSlots:
        """Resolve positions in prompts.

        Arguments:
            positions: of the vocabulary in `interp.positions`.
            encoded: the prompts.
            spans: more spans of each prompt, by name, beside its own.

        Raises:
            InterpError: a prompt that has no such position.
        """
        rows = []
        for index, one in enumerate(encoded):
            known = one.spans if spans is None else {**one.spans, **spans[index]}
            rows.append(tuple(tuple(position.resolve(len(one.input_ids), known)) for position in positions))
        widths = tuple(max(len(row[index]) for row in rows) for index in range(len(positions)))
        return cls(tuple(positions), tuple(rows), widths)

    @property
    def names(self) -> list[str]:
        """The positions as they are spelled."""
        return [position.text for position in self.positions]

    @property
    def labels(self) -> list[str]:
        """A name for each slot: `last`, or `query.all[0]`, `query.all[1]`."""
        pairs = zip(self.positions, self.widths, strict=True)
        return [label for position, width in pairs for label in position.labels(width)]

    @cached_property
    def table(self) -> Tensor:
        """(example, slot), the token at each slot; -1 where a prompt has fewer than another."""
        rows = [
            [
                token
                for found, width in zip(row, self.widths, strict=True)
                for token in (*found, *[-1] * (width - len(found)))
            ]
            for row in self.tokens
        ]
        return torch.tensor(rows, dtype=torch.long, device="cpu").reshape(len(rows), sum(self.widths))

    @cached_property
    def members(self) -> Tensor:
        """(slot, position), 1.0 where a slot is of a position."""
        of = torch.arange(len(self.widths), device="cpu").repeat_interleave(torch.tensor(self.widths, device="cpu"))
        return (of[:, None] == torch.arange(len(self.widths), device="cpu")).double()

    def slots(self, name: str) -> range:
        """Where a position stands along the axis."""
        index = self.names.index(name)
        start = sum(self.widths[:index])
        return range(start, start + self.widths[index])

    def rows(self, examples: Sequence[int]) -> TokenSlots:
        """The same slots of some of the examples."""
        return TokenSlots(self.positions, tuple(self.tokens[row] for row in examples), self.widths)

    def places_in(self, wider: TokenSlots) -> Tensor:
        """(slot,), where each slot of this axis stands along a wider one of the same positions."""
        return torch.tensor(
            [
                slot
                for name, width in zip(self.names, self.widths, strict=True)
                for slot in list(wider.slots(name))[:width]
            ],
            dtype=torch.long,
            device="cpu",
        )

    @classmethod
    def together(cls, several: Sequence[TokenSlots]) -> TokenSlots:
        """The slots of several lots of examples, one behind the other."""
        widths = tuple(max(sizes) for sizes in zip(*(one.widths for one in several), strict=True))
        return cls(several[0].positions, tuple(row for one in several for row in one.tokens), widths)

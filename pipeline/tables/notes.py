"""What a reader of data should know of it, counted. In a file of its own: most stages read notes, few read tables."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Note"]


@dataclass(frozen=True, slots=True)
class Note:
    """Something odd about data that can be read.

    Arguments:
        what: as it follows its count in a sentence (`blank lines left out`).
        count: how often; 1 for what holds for the file as a whole.
        examples: a few of them, with their lines.
    """

    what: str
    count: int = 1
    examples: tuple[str, ...] = ()

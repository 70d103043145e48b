"""The errors that a user is meant to read, and the words that they share."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["InterpError", "nearest"]


class InterpError(ValueError):
    """Something that the caller can mend. The message says what was expected, what came and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The half sentence that names the nearest known names.

    Arguments:
        name: what the user wrote.
        known: the names that would have been right.

    Returns:
        ` Did you mean 'x'?`, or the list of all known names where none is near.
    """
    names = sorted(str(k) for k in known)
    close = get_close_matches(str(name), names, n=3, cutoff=0.6)
    if close:
        return f" Did you mean {' or '.join(repr(c) for c in close)}?"
    shown = [name if name.isprintable() else repr(name) for name in names]  # a message has one line
    return f" Known: {', '.join(shown)}."

"""A cell that is written as a list of texts: `['Buch', 'Papier']`, in Python's way or JSON's."""

from __future__ import annotations

import ast

__all__ = ["listed"]


def listed(text: str) -> str | list[str]:
    """The texts of a list literal; the text itself where it is none."""
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return text
    try:
        value = ast.literal_eval(stripped)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    return text

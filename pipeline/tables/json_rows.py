"""JSON by its source text: a number stays the digits that the file has, a key that stands twice is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["Literal", "parse_json"]


class Literal(str):
    """The source text of a number or a boolean: `1735`, `1735.0`, `true`. Not what the file has as a text."""

    __slots__ = ()


def parse_json(path: str | Path, encoding: str = "auto") -> Any:
    """Read a JSON file whole, of whatever shape.

    Arguments:
        path: the file; gzip and byte-order marks are understood.
        encoding: of its text; `auto`: as the byte-order mark says, else UTF-8.

    Returns:
        dict, list, str, None, and `Literal` for numbers and booleans.

    Raises:
        TableError: it cannot be read, is no JSON, is nested too deep, or has a key twice in one object.
    """
    raise NotImplementedError

"""JSON by its source text: a number stays the digits that the file has, a key that stands twice is an error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pipeline.tables.decoding import decoded
from pipeline.tables.table import TableError

__all__ = ["Literal", "json_objects", "parse_json"]

SPACE = re.compile(r"[ \t\r\n]*")  # what JSON calls space; U+2028 and other separators of lines are text
ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")  # half a character, or a half of one; bytes of text cannot spell it
HALF = re.compile("[\ud800-\udfff]")
SHOWN = 60  # characters of a file in a message


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
    reading = _Reading(decoded(path, encoding)[0], str(path))
    value = reading.value()
    if reading.more():
        raise reading.error("the end of the file")
    return value


def json_objects(text: str, path: str) -> tuple[list[dict[str, Any]], list[int], str]:
    """The objects of a JSON list, or those that follow one another (JSON lines): the text decides, not the file's name.

    Arguments:
        text: the file's.
        path: the file, for messages.

    Returns:
        The objects, the line where each begins, and the format (`JSON`, `JSON lines`).

    Raises:
        TableError: something else stands there; the message names the line.
    """
    reading = _Reading(text, path)
    objects: list[dict[str, Any]] = []
    lines: list[int] = []
    listed = reading.take("[")
    more = reading.more() and not (listed and reading.take("]"))
    while more:
        line = reading.line()
        if not reading.at("{"):
            raise reading.error("a JSON object")
        objects.append(reading.value())
        lines.append(line)
        if not listed:
            more = reading.more()
        elif reading.take("]"):
            more = False
        elif not reading.take(","):
            raise reading.error("`,` or `]` after a JSON object")
    if listed and reading.more():
        raise reading.error("the end of the file after its list")
    return objects, lines, "JSON" if listed else "JSON lines"


class _Reading:
    """A place in a text that moves on over what is read."""

    def __init__(self, text: str, path: str) -> None:
        self.text, self.path, self.place = text, path, 0
        self._halves = ESCAPED.search(text) is not None
        self._counted, self._line = 0, 1  # lines up to a place, so that no file is counted twice
        self._decoder = json.JSONDecoder(
            object_pairs_hook=_object, parse_int=Literal, parse_float=Literal, parse_constant=_constant
        )

    def more(self) -> bool:
        """Go over space; whether something follows."""
        match = SPACE.match(self.text, self.place)
        assert match is not None
        self.place = match.end()
        return self.place < len(self.text)

    def at(self, sign: str) -> bool:
        return self.more() and self.text[self.place] == sign

    def take(self, sign: str) -> bool:
        found = self.at(sign)
        self.place += found
        return found

    def line(self) -> int:
        """The line of the place, counted from 1; lines end in `\\n` alone."""
        self.more()
        self._line += self.text.count("\n", self._counted, self.place)
        self._counted = self.place
        return self._line

    def value(self) -> Any:
        line = self.line()
        try:
            value, self.place = self._decoder.raw_decode(self.text, self.place)
            return _checked(_plain(value)) if self._halves else _plain(value)
        except json.JSONDecodeError as error:
            said = error.msg.removesuffix(" at")  # some of Python's own messages end so
            what = f"got a syntax error: {said} at column {error.colno} of line {error.lineno}"
        except RecursionError:
            what = "got one that is nested too deep to be read"
        except ValueError as error:
            what = f"got one with {error}"
        raise TableError(f"cannot read {self.path}, line {line}: expected JSON, {what}.")

    def error(self, expected: str) -> TableError:
        line = self.line()
        end = self.text.find("\n", self.place)
        came = self.text[self.place : end if end >= 0 else None][:SHOWN]
        return TableError(f"{self.path}, line {line}: expected {expected}, got {came!r}.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    for key, value in pairs:
        if value is True or value is False or type(value) is list:
            made[key] = _plain(value)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} twice in one object; remove one")
    return made


def _constant(text: str) -> Any:
    """`NaN` is what Python and pandas write where there is no value."""
    return None if text == "NaN" else Literal(text)


def _plain(value: Any) -> Any:
    """Booleans as their source text; objects have gone through `_object` already."""
    if isinstance(value, bool):
        return Literal("true" if value else "false")
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _checked(value: Any) -> Any:
    """The same value, if no text in it holds half a character."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += [*item, *item.values()]
        elif isinstance(item, list):
            left += item
        elif isinstance(item, str) and not item.isascii() and (half := HALF.search(item)):
            raise ValueError(f"half a character (\\u{ord(half[0]):04x}) in the text {item[:SHOWN]!r}; mend the text")
    return value

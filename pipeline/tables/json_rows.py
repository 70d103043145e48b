"""Parse JSON by its source text: a number keeps the digits of the file, a key that stands twice is an error.

Also cells of other files that spell a list as Python or JSON writes it: `['Buch', 'Band']`, `["book"]`, `[1735]`.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from pipeline.tables.table import TableError
from pipeline.tables.text_files import decoded

__all__ = ["Literal", "json_objects", "listed_in", "parse_json"]


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


def listed_in(text: str, where: str) -> list[str] | None:
    """The words of a list that a text spells.

    Arguments:
        text: the cell's.
        where: the cell, for messages.

    Returns:
        Texts as they are, numbers and booleans by their source text, without what is `None` or `null`; None: the text
        spells no list of such.

    Raises:
        InterpError: texts follow one another without a comma, as an array of NumPy prints them: Python would join them.
    """
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        items = json.loads(text, parse_int=str, parse_float=str)
        if all(item is None or isinstance(item, str | bool) for item in items):
            return [_spelled(item) for item in items if item is not None]
        return None
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # a backslash in somebody's text
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(tree, ast.List):
        return None
    words: list[str] = []
    texts = 0
    for item in tree.elts:
        constant = item.operand if isinstance(item, ast.UnaryOp) and isinstance(item.op, ast.USub) else item
        if not isinstance(constant, ast.Constant) or isinstance(constant.value, bytes):
            return None
        if isinstance(constant.value, str):
            texts += 1
            words.append(constant.value)
        elif constant.value is not None:
            words.append(ast.get_source_segment(text, item) or "")
    spelled = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.STRING]
    if len(spelled) > texts:
        raise InterpError(
            f"{where}: expected commas between the texts of a list, got {text[:60]!r}, the way NumPy prints an array. "
            "Write `array.tolist()` into the file, or set task.list_cells=text to take the cell as one answer."
        )
    return words


def _spelled(item: str | bool) -> str:
    return item if isinstance(item, str) else "true" if item else "false"

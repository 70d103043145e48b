"""Positions of an intervention: a spelling for all examples, or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias

from interp.errors import InterpError
from interp.positions import Block, Position, Span

__all__ = ["Where", "as_where", "is_of_the_end", "plain_where", "resolve_where"]

Where: TypeAlias = str | tuple[str, ...]
"""One or several spellings of `interp.positions` with spaces between (`last`, `first query.last`, `before_query`), the
same for all examples; or a tuple with one text for each example, empty where an example has none."""


def as_where(given: Any, name: str) -> Where:
    """Positions as text.

    Arguments:
        given: a spelling, an integer, or a list with an entry for each example: a spelling, an integer, a list of
            these, or None.
        name: of the field, for messages.

    Raises:
        InterpError: something else, or a spelling that cannot be read.
    """
    given = _plain(given)
    if isinstance(given, str) or _is_integer(given):
        text = _text(given, name)
        if not text:
            raise InterpError(f"{name}: expected a position, e.g. last, got none.")
        return text
    if not isinstance(given, Sequence) or not given:
        raise InterpError(
            f"{name}: expected a position, e.g. 'last' or 'first 3', or a list with positions for each example, got "
            f"{given!r:.80}."
        )
    return tuple(_text(entry, f"{name}[{index}]") for index, entry in enumerate(given))


def _text(given: Any, name: str) -> str:
    given = _plain(given)
    if given is None:
        return ""
    parts = given if isinstance(given, list | tuple) else [given]
    for part in parts:
        if not (isinstance(part, str) or _is_integer(part)):
            raise InterpError(f"{name}: expected a position, e.g. 'last' or 3, got {part!r:.80}.")
    words = " ".join(str(part) for part in parts).split()
    for word in words:
        _parse(word)
    return " ".join(words)


def _plain(given: Any) -> Any:
    make = getattr(given, "tolist", None)
    return make() if callable(make) else given


def _is_integer(given: Any) -> bool:
    return isinstance(given, Integral) and not isinstance(given, bool)


def _parse(word: str) -> Position | Block:
    return Block.parse(word) if word.startswith(("before_", "after_")) else Position.parse(word)


def is_of_the_end(where: Where) -> bool:
    """Whether positions count from the end or in a span, and so are the same tokens whatever comes before."""
    texts = [where] if isinstance(where, str) else where
    for parsed in (_parse(word) for text in texts for word in text.split()):
        if isinstance(parsed, Block):
            if parsed.side == "before":
                return False
        elif parsed.span_name is None and not (
            parsed.start is not None and parsed.start < 0 and (parsed.stop is None or parsed.stop < 0)
        ):
            return False
    return True


def plain_where(where: Where) -> str | list[str]:
    """Positions as a file has them."""
    return where if isinstance(where, str) else list(where)


def resolve_where(
    where: Where, lengths: Sequence[int], spans: Sequence[Mapping[str, Span]], name: str
) -> list[list[int]]:
    """The tokens of each example.

    Arguments:
        where: the positions.
        lengths: tokens of each example.
        spans: its spans by name.
        name: of the field, for messages.

    Returns:
        Indices into each example's own tokens, in the order in which they are spelled; one that is named twice, once.

    Raises:
        InterpError: an example that has no such position, or lists for another number of examples.
    """
    if not isinstance(where, str) and len(where) != len(lengths):
        raise InterpError(
            f"{name}: expected positions for each of {_count(len(lengths), 'example')}, got {len(where)}. One text, "
            "e.g. 'last', is for all of them."
        )
    texts = [where] * len(lengths) if isinstance(where, str) else where
    resolved = []
    for example, (text, length, own) in enumerate(zip(texts, lengths, spans, strict=True)):
        found: list[int] = []
        for word in text.split():
            try:
                found += _parse(word).resolve(length, own)
            except InterpError as error:
                raise InterpError(f"{name}: example {example}: {error}") from None
        resolved.append(list(dict.fromkeys(found)))
    return resolved


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")

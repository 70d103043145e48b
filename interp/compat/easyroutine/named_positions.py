"""easyroutine's names of token positions, found in each example.

| name | tokens |
|---|---|
| `first`, `last`, `last-2`, `last-3`, ... | one, from the start or the end |
| `all`, `all-text`, `all-image` | all, those that are no image's, those that are an image's |
| `start-image`, `end-image`, `last-image` | where the images begin and end |
| `random-text`, `random-text-3`, `random-image-10` | drawn with seed 0, ascending; `random-text-3@7`: with seed 7 |
| `position-group-1`, `inputs-partition-1` | the second part of `split_positions` (`pivot_positions`) |
| `random-position-group-1`, `random-inputs-partition-1-4` | some of these |
| `3`, `-1`, `(2, 5)` | an integer; a range, its end left out |

Positions count an example's own tokens, from 0; padding on either side is left out. Spellings of `interp.positions` are
read too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from interp.errors import InterpError, nearest
from interp.positions import Position
from interp.prompts import Encoded

__all__ = ["Name", "named", "pivots_of", "tokens_at"]

Name = str | int | tuple[int, int]

_KNOWN = (
    "first", "last", "last-2", "all", "all-text", "all-image", "start-image", "end-image", "last-image", "random-text",
    "random-image", "position-group-0", "inputs-partition-0", "random-position-group-0", "random-inputs-partition-0",
)  # fmt: skip
_LAST = re.compile(r"last-(\d+)")
_RANDOM = re.compile(r"random-(text|image)(?:-(\d+))?(?:@(\d+))?")
_GROUP = re.compile(r"(random-)?(?:position-group|inputs-partition)-(\d+)(?:-(\d+))?(?:@(\d+))?")

_POSITION = re.compile(r"^position '[^']*'")


def named(positions: Any, what: str = "target_token_positions") -> list[Name]:
    """One name or several as a list.

    Arguments:
        positions: what the user gave.
        what: the argument's name, for messages.

    Raises:
        InterpError: nothing, or what is no name: neither a text, nor an integer, nor a pair of integers.
    """
    if isinstance(positions, str | int | np.integer) or _is_pair(positions):
        positions = [positions]
    if not isinstance(positions, Sequence) or not positions:
        raise InterpError(f"{what}: expected names of token positions, at least one, e.g. ['last']; got {positions!r}.")
    found: list[Name] = []
    for given in positions:
        name = tuple(map(_plain, given)) if isinstance(given, list | tuple) else _plain(given)
        if isinstance(name, bool) or not (isinstance(name, str | int) or _is_pair(name)):
            raise InterpError(f"{what}: expected a name, an integer or a pair (start, end), got {given!r}.")
        if name in found:
            raise InterpError(f"{what}: {name!r} is given twice.")
        found.append(name)
    return found


def pivots_of(given: Any, examples: int, name: str = "split_positions") -> list[list[int]]:
    """Where each example is split.

    Arguments:
        given: one list for all examples, or one for each; None: nowhere.
        examples: how many there are.
        name: the argument's, for messages.

    Raises:
        InterpError: lists for another number of examples, or what is no list of integers.
    """
    plain = given.tolist() if isinstance(given, Tensor) else given
    if plain is None:
        return [[] for _ in range(examples)]
    rows: Any = (
        [row.tolist() if isinstance(row, Tensor) else row for row in plain] if isinstance(plain, Sequence) else None
    )
    if rows is not None and all(isinstance(row, int) for row in rows):
        return [sorted(rows) for _ in range(examples)]
    if rows is None or len(rows) != examples or not all(isinstance(row, Sequence) for row in rows):
        raise InterpError(
            f"{name}: expected integers, e.g. [3, 7], or lists of them, one for each of {examples} examples; got "
            f"{given!r:.60}."
        )
    return [sorted(int(one) for one in row) for row in rows]


def tokens_at(name: Name, encoded: Sequence[Encoded], pivots: Sequence[Sequence[int]]) -> list[list[int]]:
    """The tokens of each example that a name means.

    Arguments:
        name: one of the table above.
        encoded: the examples.
        pivots: where each is split, of its own tokens.

    Returns:
        Of each example indices into its own tokens.

    Raises:
        InterpError: an unknown name, with the nearest ones; an example that has no such token.
    """
    found = []
    for row, (example, splits) in enumerate(zip(encoded, pivots, strict=True)):
        try:
            found.append(_tokens(name, len(example.input_ids), example.spans, splits))
        except InterpError as error:
            where = f"example {row}: " if len(encoded) > 1 else ""
            said = _POSITION.sub("", str(error))  # which interp's own spelling of it begins with
            joint = "" if said != str(error) else ": "
            raise InterpError(f"{where}token position {name!r}{joint}{said}") from None
    return found


def _tokens(name: Name, length: int, spans: Mapping[str, Any], splits: Sequence[int]) -> list[int]:
    if isinstance(name, tuple):
        start, stop = name
        return Position.parse(f"{start}:{stop}").resolve(length, spans)
    if isinstance(name, int):
        return Position.parse(name).resolve(length, spans)
    word = name.strip()
    if match := _GROUP.fullmatch(word):
        return _group(word, match, length, splits)
    if match := _LAST.fullmatch(word):
        if int(match[1]) == 0:
            raise InterpError("the last token is last, or last-1.")
        return Position.parse(f"-{match[1]}").resolve(length, spans)
    if word in ("start-image", "end-image", "last-image"):
        return _of_each_image(word, length, spans)
    if match := _RANDOM.fullmatch(word):
        word = f"{match[1]}.random:{match[2] or 1}@{match[3] or 0}"
    return Position.parse(_checked(word)).resolve(length, spans)


def _of_each_image(word: str, length: int, spans: Mapping[str, Any]) -> list[int]:
    """The first token of each image, its last, or its marker behind it where there is one, else its last."""
    images = [f"image[{index}]" for index in range(len(spans)) if f"image[{index}]" in spans]
    if not images:
        return Position.parse(word).resolve(length, spans)  # raises, and says why
    sides = {"start-image": ("first",), "last-image": ("last",), "end-image": ("end", "last")}[word]
    found = []
    for image in images:
        side = sides[0] if sides[0] != "end" or f"{image}.end" in spans else sides[-1]
        found += Position.parse(f"{image}.{side}").resolve(length, spans)
    return found


def _group(word: str, match: re.Match[str], length: int, splits: Sequence[int]) -> list[int]:
    if match[3] and not match[1]:
        raise InterpError(f"only a random one has a count: random-{word}.")
    if not splits:
        raise InterpError("it needs split_positions= (or pivot_positions=), where the groups begin, e.g. [3, 7].")
    outside = [split for split in splits if not 0 < split < length]
    if outside:
        raise InterpError(f"split_positions {list(splits)}: {outside[0]} is not inside its {length} tokens.")
    bounds = [0, *splits, length]
    group = int(match[2])
    if group >= len(bounds) - 1:
        raise InterpError(f"split_positions {list(splits)} make {len(bounds) - 1} groups, from 0.")
    selection = f"random:{match[3] or 1}@{match[4] or 0}" if match[1] else "all"
    return Position.parse(f"group.{selection}").resolve(length, {"group": (bounds[group], bounds[group + 1])})


def _checked(word: str) -> str:
    """A name that is none of the table's, which may be a spelling of `interp.positions`."""
    try:
        return Position.parse(word).text
    except InterpError:
        raise InterpError(f"unknown.{nearest(word, _KNOWN)}") from None


def _plain(given: Any) -> Any:
    """Python's integer in place of numpy's."""
    return int(given) if isinstance(given, np.integer) else given


def _is_pair(given: Any) -> bool:
    return (
        isinstance(given, tuple)
        and len(given) == 2
        and all(isinstance(end, int) and not isinstance(end, bool) for end in given)
    )

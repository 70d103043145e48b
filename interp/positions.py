"""The vocabulary of token positions, resolved for each prompt.

| spelling | tokens |
|---|---|
| `first`, `last`, `all` | of the prompt |
| `0`, `-2` | an integer, from the start or from the end |
| `2:5`, `:3`, `-2:` | a slice, the end left out |
| `random:3`, `random:3@7` | three drawn without replacement, with seed 0 or 7, in ascending order |
| `query.first`, `query.last`, `query.all`, `query.1`, ... | any of these, within a span that the prompt marks |
| `image[0].first`, `image[0].last`, `image[0].all`, ... | the tokens of the prompt's first image; `image.all`: of all |
| `image[0].begin`, `image[0].end` | the marker before and behind an image, where the family has one |
| `text.all`, `text.last`, ... | the tokens that stand for no image and mark none |
| `text.after_image[0]` | those of them behind an image and before the next; `text.after_image[0].first`, ... |

A set of tokens that an attention knock-out blocks (`Block`) is any of these, or

| spelling | tokens |
|---|---|
| `before_query`, `after_query` | all tokens of the prompt before, or after, the span `query` |

Positions count the prompt's own tokens, the beginning-of-text token included and padding left out.

easyroutine's names are read too: `last-2` is `-2`, `all-text` is `text.all`, `all-image` is `image.all`,
`random-text-3` and `random-image-3` are `text.random:3` and `image.random:3`, `start-image` and `last-image` are
`image[0].first` and `image[0].last`. `end-image` is `image[0].end` where the family has that marker, else
`image[0].last`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from interp.errors import InterpError, nearest

__all__ = ["Block", "Position", "Span", "TokenSet", "check_blocks", "check_positions"]


_INTEGER = re.compile(r"-?\d+")
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?")
_RANDOM = re.compile(r"random:(\d+)(?:@(\d+))?")
_SPAN = re.compile(r"[A-Za-z_]\w*(\[\d+\])?(\.[A-Za-z_]\w*(\[\d+\])?)*")
_MARKER = re.compile(r"image\[\d+\]\.(begin|end)")
_AFTER = re.compile(r"text\.after_image\[\d+\]")
# easyroutine's names, as this vocabulary spells them.
_ALIASES = (
    (re.compile(r"last-(\d+)"), r"-\1"),
    (re.compile(r"all-(text|image)"), r"\1.all"),
    (re.compile(r"random-(text|image)"), r"\1.random:1"),
    (re.compile(r"random-(text|image)-(\d+(?:@\d+)?)"), r"\1.random:\2"),
    (re.compile(r"start-image"), "image[0].first"),
    (re.compile(r"last-image"), "image[0].last"),
)
_FORMS = (
    "first, last, all, an integer (0, -2), a slice (2:5), random:3 or random:3@SEED, "
    "or one of these in a span (query.last)"
)


@dataclass(frozen=True)
class TokenSet:
    """A span that may have gaps, such as the tokens of an image, between which its rows are marked.

    Arguments:
        tokens: positions, ascending, at least one.
    """

    tokens: tuple[int, ...]


Span = tuple[int, int] | TokenSet
"""Token positions (start, stop), half open; or a set."""


@dataclass(frozen=True)
class Position:
    """One or several token positions, named without knowing the prompt.

    `Position.parse` makes them.

    Arguments:
        text: the spelling.
        span_name: the span that the positions count within; None: the whole prompt.
        start: first token, from the end where negative; None: the first of all.
        stop: the token after the last; None: up to the end.
        single: exactly one token, `start`.
        draw: how many tokens to draw at random; None: all of them.
        seed: seed of the draw.
        instead: the span that counts where a prompt lacks the other.
    """

    text: str
    span_name: str | None = None
    start: int | None = None
    stop: int | None = None
    single: bool = False
    draw: int | None = None
    seed: int = 0
    instead: str | None = None

    @classmethod
    def parse(cls, text: str | int) -> Position:
        """Read a spelling.

        Arguments:
            text: see the table at the top of `interp.positions`.

        Raises:
            InterpError: it cannot be read.
        """
        spelling = str(text).strip()
        if spelling == "end-image":
            return cls(spelling, "image[0].end", start=-1, single=True, instead="image[0]")
        for name, meaning in _ALIASES:
            if match := name.fullmatch(spelling):
                return replace(cls.parse(match.expand(meaning)), text=spelling)
        if _MARKER.fullmatch(spelling):
            return cls(spelling, spelling, start=0, single=True)
        if _AFTER.fullmatch(spelling):
            return cls(spelling, spelling)
        span, dot, selection = spelling.rpartition(".")
        span_name = span if dot else None
        if span_name is not None and not _SPAN.fullmatch(span_name):
            raise InterpError(f"position {spelling!r}: {span_name!r} is not the name of a span. Expected {_FORMS}.")
        if selection in ("first", "last"):
            return cls(spelling, span_name, start=0 if selection == "first" else -1, single=True)
        if selection == "all":
            return cls(spelling, span_name)
        if _INTEGER.fullmatch(selection):
            return cls(spelling, span_name, start=int(selection), single=True)
        if match := _SLICE.fullmatch(selection):
            start, stop = (None if end is None else int(end) for end in match.groups())
            if start is not None and stop is not None and (start < 0) == (stop < 0) and start >= stop:
                raise InterpError(
                    f"position {spelling!r}: the slice is empty. Its end is left out: write start < stop."
                )
            return cls(spelling, span_name, start, stop)
        if match := _RANDOM.fullmatch(selection):
            if int(match[1]) == 0:
                raise InterpError(f"position {spelling!r} draws no token. Write random:1 or more.")
            return cls(spelling, span_name, draw=int(match[1]), seed=int(match[2] or 0))
        if _SPAN.fullmatch(selection) and not dot:
            known = nearest(selection, ["first", "last", "all"])
            advice = known if known.startswith(" Did") else f" Expected {_FORMS}."
            raise InterpError(
                f"position {spelling!r}: of a span, say which tokens: {spelling}.first, {spelling}.last, "
                f"{spelling}.all or {spelling}.0.{advice}"
            )
        raise InterpError(f"position {spelling!r} cannot be read. Expected {_FORMS}.")

    def __str__(self) -> str:
        return self.text

    def resolve(self, length: int, spans: Mapping[str, Span]) -> list[int]:
        """The positions in one prompt.

        Arguments:
            length: number of the prompt's tokens, without padding.
            spans: the prompt's spans by name.

        Returns:
            Indices into the unpadded prompt, ascending; never none.

        Raises:
            InterpError: the prompt has no such span, or too few tokens.
        """
        if length < 1:
            raise InterpError(f"position {self.text!r}: the prompt has no tokens.")
        places, of = self._places(length, spans)
        size = len(places)
        if self.single:
            assert self.start is not None
            if not -size <= self.start < size:
                raise InterpError(
                    f"position {self.text!r} is out of range: {of} has {_tokens(size)}, 0 to {size - 1} or "
                    f"{-size} to -1."
                )
            return [places[self.start]]
        if self.draw is not None:
            if self.draw > size:
                raise InterpError(f"position {self.text!r} draws {self.draw}, but {of} has {_tokens(size)}.")
            return sorted(places[index] for index in self._drawn(size))
        bounds = [0 if self.start is None else self.start, size if self.stop is None else self.stop]
        for bound in bounds:
            if not -size <= bound <= size:
                raise InterpError(f"position {self.text!r} is out of range at {bound}: {of} has {_tokens(size)}.")
        start, stop = (bound + size if bound < 0 else bound for bound in bounds)
        if start >= stop:
            raise InterpError(f"position {self.text!r} holds no token: {of} has {_tokens(size)}.")
        return list(places[start:stop])

    def _places(self, length: int, spans: Mapping[str, Span]) -> tuple[Sequence[int], str]:
        """The tokens that it counts within, and what messages call them."""
        name = self.span_name
        if self.instead is not None and name not in spans:
            name = self.instead
        if name is None or (name == "text" and not {"text", "image"} & spans.keys()):
            return range(length), "the prompt"
        if name not in spans:
            raise InterpError(f"position {self.text!r}: {_no_span(name, spans)}")
        span = spans[name]
        if isinstance(span, TokenSet):
            first, last, places = span.tokens[0], span.tokens[-1], span.tokens
        else:
            first, last, places = span[0], span[1] - 1, range(*span)  # type: ignore[assignment]
        if not (places and first >= 0 and last < length):
            shown = f"({first}, {last + 1})"
            raise InterpError(
                f"position {self.text!r}: the span {name!r} is {shown}; expected 0 <= start < stop <= {length}, the "
                "number of the prompt's tokens."
            )
        return places, f"the span {name!r} (tokens {first} to {last} of a prompt of {length})"

    def labels(self, count: int) -> list[str]:
        """Names along a position axis that holds up to `count` of these: `last`, or `query.all[0]`, `query.all[1]`."""
        return [self.text] if self.single else [f"{self.text}[{index}]" for index in range(count)]

    def _drawn(self, size: int) -> list[int]:
        # By hash, not `random`: the same draw on every version of Python, for good.
        def key(index: int) -> bytes:
            return hashlib.sha256(f"{self.seed}/{size}/{index}".encode()).digest()

        return sorted(range(size), key=key)[: self.draw]


def _no_span(name: str, spans: Mapping[str, Span]) -> str:
    """Why a prompt lacks a span."""
    if name.startswith(("image", "text.after_image")) and "image" not in spans:
        return "the prompt has no image. Give one, images= beside it or Prompt(text, images=...)."
    if _MARKER.fullmatch(name) and name.rpartition(".")[0] in spans:
        which = name.rpartition(".")
        side = "before" if which[2] == "begin" else "behind"
        return (
            f"this model's family has no marker {side} an image. Write {which[0]}."
            f"{'first' if which[2] == 'begin' else 'last'} for the image's own."
        )
    known = nearest(name, spans) if spans else " It marks none."
    return f"the prompt has no span {name!r}.{known}"


def check_positions(texts: str | Iterable[str]) -> list[Position]:
    """Reject bad positions before anything is loaded.

    Arguments:
        texts: one spelling or several.

    Returns:
        The positions, in the given order.

    Raises:
        InterpError: one cannot be read, one is given twice, or there is none.
    """
    spellings = [texts] if isinstance(texts, str) else list(texts)
    positions = [Position.parse(text) for text in spellings]
    if not positions:
        raise InterpError("expected at least one position, e.g. last, got none.")
    for index, position in enumerate(positions):
        if position in positions[:index]:
            raise InterpError(f"position {position.text!r} is given twice.")
    return positions


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


SIDES = ("before", "after")


@dataclass(frozen=True)
class Block:
    """A set of tokens, named without knowing the prompt; `Block.parse` makes it.

    Arguments:
        text: the spelling, which is the block's name too.
        span_name: the span that it speaks of; None: of the whole prompt.
        side: `before` or `after` that span; None: the tokens of `position`.
        position: the tokens; None where there is a `side`.
    """

    text: str
    span_name: str | None
    side: str | None = None
    position: Position | None = None

    @classmethod
    def parse(cls, text: str) -> Block:
        """Read a spelling.

        Raises:
            InterpError: it cannot be read.
        """
        side, underscore, span = text.strip().partition("_")
        if side in SIDES and underscore:
            if not span.isidentifier():
                raise InterpError(f"block {text!r}: {span!r} is not the name of a span. Write e.g. {side}_query.")
            return cls(text.strip(), span, side=side)
        try:
            position = Position.parse(text)
        except InterpError as error:
            raise InterpError(f"{error} Or all tokens before or after a span: before_query, after_query.") from None
        return cls(position.text, position.span_name, position=position)

    def resolve(self, length: int, spans: Mapping[str, Span]) -> list[int]:
        """The tokens in one prompt.

        Arguments:
            length: number of the prompt's tokens.
            spans: the prompt's spans by name.

        Returns:
            Indices into the unpadded prompt, ascending; never none.

        Raises:
            InterpError: the prompt has no such span, or no such token.
        """
        if self.position is not None:
            return self.position.resolve(length, spans)
        assert self.span_name is not None
        inside = Position.parse(f"{self.span_name}.all").resolve(length, spans)
        found = range(inside[0]) if self.side == "before" else range(inside[-1] + 1, length)
        if not found:
            raise InterpError(
                f"block {self.text!r} holds no token: the span {self.span_name!r} is tokens {inside[0]} to "
                f"{inside[-1]} of a prompt of {length}."
            )
        return list(found)


def check_blocks(texts: Sequence[str]) -> list[Block]:
    """Reject bad blocks before anything is loaded.

    Returns:
        The blocks, in the given order.

    Raises:
        InterpError: one cannot be read, one is given twice, or there is none.
    """
    blocks = [Block.parse(text) for text in texts]
    if not blocks:
        raise InterpError("expected at least one set of tokens, e.g. query.all, got none.")
    for index, block in enumerate(blocks):
        if block in blocks[:index]:
            raise InterpError(f"block {block.text!r} is given twice.")
    return blocks

"""Named sets of tokens that an attention knock-out blocks.

| spelling | tokens |
|---|---|
| any of `interp.positions` | `first`, `query.all`, `2:5`, ... |
| `before_query`, `after_query` | all tokens of the prompt before, or after, the span `query` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interp.errors import InterpError
from interp.positions import Position

__all__ = ["Block", "check_blocks"]

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

    def resolve(self, length: int, spans: Mapping[str, tuple[int, int]]) -> list[int]:
        """The tokens in one prompt.

        Arguments:
            length: number of the prompt's tokens.
            spans: the prompt's spans by name, as token positions (start, stop), half open.

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

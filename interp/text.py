"""Text of tokens, and text from data (tokens, prompts, names) made harmless to show: no control character and no
override of the writing direction reaches a page, a figure or a terminal.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["readable", "token_text", "visible"]

_SHOWN = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
# control, format, surrogate, unassigned or private characters, separators other than the plain space
_HIDDEN = ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")


def visible(text: str) -> str:
    """A token on one line: spaces, line breaks and tabs as signs (`␣`, `↵`, `⇥`), what is not seen spelled out."""
    return "".join(_SHOWN.get(character) or _spelled(character) for character in text)


def readable(text: str) -> str:
    """Text with line breaks and tabs kept, every other character that is not seen spelled out (`\\x00`, `\\u202e`)."""
    return "".join(character if character in "\n\t" else _spelled(character) for character in text)


def _spelled(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text of one token.

    Decoding alone drops the space that a SentencePiece word begins with, and shows part of a character as U+FFFD; there
    the token's own spelling tells more.

    Arguments:
        tokenizer: the model's.
        token_id: from 0; `<unused 50300>` for one that the output layer has and the tokenizer lacks.
    """
    piece = tokenizer.convert_ids_to_tokens(token_id) if token_id < len(tokenizer) else None
    if piece is None:
        return f"<unused {token_id}>"
    text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    if piece.startswith("▁") and not text.startswith(" "):
        text = " " + text
    return text if text and "\ufffd" not in text else piece

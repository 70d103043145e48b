"""Text from data (tokens, prompts, names) made harmless to show: no control character and no override of the writing
direction reaches a page, a figure or a terminal.
"""

from __future__ import annotations

import unicodedata

__all__ = ["readable", "visible"]

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

"""Text from data, made harmless to show: tokens, prompts and names."""

from __future__ import annotations

import html
import unicodedata

__all__ = ["escaped", "visible"]

_SHOWN = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
# control, format, surrogate, unassigned or private characters, separators other than the plain space
_HIDDEN = ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")


def visible(text: str) -> str:
    """A token on one line: spaces, line breaks and tabs as signs (`␣`, `↵`, `⇥`), what is not seen spelled out."""
    return "".join(_SHOWN.get(character) or _spelled(character) for character in text)


def escaped(text: str) -> str:
    """Text as plotly shows it letter by letter: it reads tags (`<b>`) and entities (`&lt;`) in names and labels."""
    return html.escape(str(text), quote=False)


def _spelled(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

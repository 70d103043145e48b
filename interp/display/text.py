"""Text as plotly shows it."""

from __future__ import annotations

import html

__all__ = ["escaped"]


def escaped(text: str) -> str:
    """Text as plotly shows it letter by letter: it reads tags (`<b>`) and entities (`&lt;`) in names and labels."""
    return html.escape(str(text), quote=False)

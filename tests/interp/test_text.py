"""Text that is shown: nothing unseen reaches the reader."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.text import readable, visible


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" libro", "␣libro"), ("\n\n", "↵↵"), ("\t", "⇥"), ("\r", "␍"), ("<b>&", "<b>&"), ("日本", "日本"),
        ("\x00", "\\x00"), ("\u202eabc", "\\u202eabc"), ("\u200b", "\\u200b"),
        ("\U000e0041", "\\U000e0041"), ("\ud800", "\\ud800"),
        ("", ""), ("árbol", "árbol"), ("\u2028", "\\u2028"),
    ],
)  # fmt: skip
def test_tokens_are_visible(token: str, shown: str) -> None:
    assert visible(token) == shown


@given(st.text(st.characters()))
def test_nothing_unseen_is_left(text: str) -> None:
    for shown, kept in ((visible(text), ""), (readable(text), "\n\t")):
        shown.encode("utf-8")  # no lone surrogate is left
        assert not [c for c in shown if unicodedata.category(c)[0] == "C" and c not in kept]


def test_readable_keeps_lines() -> None:
    assert readable("a b\n\tc\r\x07") == "a b\n\tc\\x0d\\x07"

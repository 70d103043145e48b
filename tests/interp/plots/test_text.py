"""Text from data: nothing unseen, nothing that plotly takes for a tag."""

from __future__ import annotations

import pytest

from interp.plots import escaped, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a b", "␣a␣b"),
        ("\n\t\r", "↵⇥␍"),
        ("日本", "日本"),
        ("\x00\u202e", "\\x00\\u202e"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_escaped() -> None:
    assert escaped('<b>&"x"') == '&lt;b&gt;&amp;"x"'

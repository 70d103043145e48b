"""Generated texts as a table."""

from __future__ import annotations

import pytest

from interp.errors import InterpError
from interp.results import GenerationResult

RESULT = GenerationResult((5, 0), (((1,), (2,)), ((3,), (4,))), (("a <i>b</i>\nc", "d e"), ("f", "g\x00")))


def test_a_row_for_each_layer_and_a_column_for_each_example() -> None:
    figure = RESULT.plot((1, 0))
    rows: dict[float, list[str]] = {}
    for text in figure.drawn("text"):
        rows.setdefault(text.get_position()[1], []).append(text.get_text())
    assert [rows[y] for y in sorted(rows)] == [
        ["layer", "example 1", "example 0"], ["5", "f", "a <i>b</i>↵c"], ["0", "g\\x00", "d e"],
    ]  # fmt: skip
    assert RESULT.plot(title="a title").texts[0].get_text() == "a title"


def test_a_long_text_is_broken_into_lines_below_each_other() -> None:
    text = "word " * 40
    figure = GenerationResult((0, 1), (((1,), (2,)),), ((text, "end"),)).plot()
    lines = [line for line in figure.drawn("text") if line.get_text() not in ("layer", "example 0", "0", "1")]
    assert "".join(line.get_text() for line in lines) == text + "end"
    heights = [line.get_position()[1] for line in lines]
    assert len(lines) == 5 and heights == sorted(set(heights))


def test_no_such_example() -> None:
    with pytest.raises(InterpError, match="examples: expected 0 to 1, got 2"):
        RESULT.plot((2,))

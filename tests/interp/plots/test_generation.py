"""Generated texts as a table."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from interp.errors import InterpError
from interp.results import GenerationResult

RESULT = GenerationResult((5, 0), (((1,), (2,)), ((3,), (4,))), (("a <i>b</i>\nc", "d e"), ("f", "g\x00")))


def test_a_row_for_each_layer_and_a_column_for_each_example() -> None:
    table = RESULT.plot((1, 0)).data[0]
    assert isinstance(table, go.Table)
    assert list(table.header["values"]) == ["layer", "example 1", "example 0"]
    assert [list(column) for column in table.cells["values"]] == [
        [5, 0], ["f", "g\\x00"], ["a &lt;i&gt;b&lt;/i&gt;↵c", "d e"],
    ]  # fmt: skip
    assert RESULT.plot(title="a title").layout.title.text == "a title"
    with pytest.raises(InterpError, match="examples: expected 0 to 1, got 2"):
        RESULT.plot((2,))

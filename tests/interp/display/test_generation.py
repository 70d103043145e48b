"""Generated texts and contributions as figures."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from interp.errors import InterpError
from interp.lenses import Attribution, GenerationResult

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


def attribution(axes: dict) -> Attribution:
    shape = tuple(len(values) for values in axes.values())
    prompt = tuple(len(values) for axis, values in axes.items() if axis != "site")
    return Attribution(
        axes,
        contribution=np.arange(np.prod(shape) * 2).reshape(*shape, 2),
        logit=np.zeros((*prompt, 2)),
        constant=np.zeros((shape[0], 2)),
        remainder=np.zeros((*prompt, 2)),
        group_names=("it", "<b>"),
    )


def test_bars_of_contributions() -> None:
    result = attribution({"example": range(2), "site": ("embed", "attn_out.0", "mlp_out.0")})
    figure = result.plot()
    assert [bar.name for bar in figure.data] == ["it", "&lt;b&gt;"]
    np.testing.assert_allclose([bar.y for bar in figure.data], result.contribution.mean(0).T)
    assert list(figure.data[0].x) == ["embed", "attn_out.0", "mlp_out.0"]
    one = result.plot(groups=["<b>"], example=1)
    np.testing.assert_allclose(one.data[0].y, result.contribution[1, :, 1])
    several = attribution({"example": range(2), "position": ("first", "last"), "site": ("embed",)})
    with pytest.raises(InterpError, match=r"bars are of one position.*first, last"):
        several.plot()
    assert list(several.select(position="last").plot(example=0).data[1].y) == [3]

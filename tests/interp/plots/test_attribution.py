"""Contributions as bars."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from interp.errors import InterpError
from interp.results import Attribution


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


def test_examples_without_the_position_or_the_group_are_left_out_of_the_mean() -> None:
    whole = attribution({"example": range(3), "site": ("embed", "mlp_out.0")})
    contribution = whole.contribution.copy()
    contribution[1] = np.nan
    contribution[2, :, 1] = np.nan
    figure = replace(whole, contribution=contribution).plot()
    np.testing.assert_allclose(figure.data[0].y, whole.contribution[[0, 2], :, 0].mean(0))
    np.testing.assert_allclose(figure.data[1].y, whole.contribution[0, :, 1])

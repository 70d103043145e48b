"""Contributions as bars."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from interp.errors import InterpError
from interp.plots import Figure
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


def heights(figure: Figure) -> list[float]:
    """Of the bars, group by group."""
    return [bar.get_height() for bar in figure.drawn("bar")]


def test_bars_of_contributions() -> None:
    result = attribution({"example": range(2), "site": ("embed", "attn_out.0", "mlp_out.0")})
    figure = result.plot()
    assert [text.get_text() for text in figure.texts[-2:]] == ["it", "<b>"], "the legend"
    np.testing.assert_allclose(heights(figure), result.contribution.mean(0).T.ravel())
    assert figure.tips("bar")[:2] == ["it, embed: 3 logits, n = 2", "it, attn_out.0: 5 logits, n = 2"]
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["embed", "attn_out.0", "mlp_out.0"] and "<b>" not in figure._repr_html_()
    one = result.plot(groups=["<b>"], example=1)
    np.testing.assert_allclose(heights(one), result.contribution[1, :, 1])
    several = attribution({"example": range(2), "position": ("first", "last"), "site": ("embed",)})
    with pytest.raises(InterpError, match=r"bars are of one position.*first, last"):
        several.plot()
    assert heights(several.select(position="last").plot(example=0))[1] == 3


def test_examples_without_the_position_or_the_group_are_left_out_of_the_mean() -> None:
    whole = attribution({"example": range(3), "site": ("embed", "mlp_out.0")})
    contribution = whole.contribution.copy()
    contribution[1] = np.nan
    contribution[2, :, 1] = np.nan
    figure = replace(whole, contribution=contribution).plot()
    np.testing.assert_allclose(heights(figure)[:2], whole.contribution[[0, 2], :, 0].mean(0))
    np.testing.assert_allclose(heights(figure)[2:], whole.contribution[0, :, 1])
    assert [tip.rpartition(" ")[2] for tip in figure.tips("bar")] == ["2", "2", "1", "1"]

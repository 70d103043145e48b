"""Curves: points lie where the axes say, names keep apart, nothing is drawn that is not known."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.plots import COMPACT, SMALL, WIDE, Baseline, Curves, Figure, Frame, Group, Series, figure_of
from interp.plots.curves import layer_ticks, name_places, named_below, spread, value_axis
from interp.plots.figure import wrapped

GROUP = Group("a", "answer", 0)


def series(
    mean: list[float], group: Group | None = GROUP, half: float = 0.1, layers: list[int] | None = None
) -> Series:
    return Series(
        group,
        layers or list(range(len(mean))),
        mean,
        [m - half for m in mean],
        [m + half for m in mean],
        [9] * len(mean),
    )


def curves(*drawn: Series, top: float | None = 1.0, baselines: tuple[Baseline, ...] = ()) -> Curves:
    return Curves("probability", "Probability", "", "", top, drawn, baselines)


def draw(panel: Curves, frame: Frame = WIDE) -> Figure:
    return figure_of([[(panel, frame)]])


def pixels(figure: Figure, kind: str, index: int = 0) -> np.ndarray:
    """The vertices of a line in points from the upper left corner, as the eye reads."""
    line = figure.drawn(kind)[index]
    x, y = line.get_transform().transform(np.column_stack(line.get_data())).T * 72 / figure.dpi
    return np.column_stack([x, figure.get_figheight() * 72 - y])


def baseline_of(figure: Figure, index: int) -> float:
    """Where a line's name stands, in points from the top."""
    text = figure.drawn("rule-name")[index]
    y = text.get_transform().transform(text.get_position())[1] * 72 / figure.dpi
    return figure.get_figheight() * 72 - y


@pytest.mark.parametrize("frame", [WIDE, COMPACT, SMALL])
def test_points_lie_where_the_axes_say(frame: Frame) -> None:
    figure = draw(curves(series([0.0, 0.5, 1.0])), frame)
    assert [figure.get_figwidth() * 72, figure.get_figheight() * 72] == pytest.approx([frame.width, frame.height])
    at = pixels(figure, "line")
    left, right = frame.left + 6 * frame.unit, frame.width - frame.right - 6 * frame.unit
    bottom = frame.height - frame.bottom
    np.testing.assert_allclose(
        at, [[left, bottom], [(left + right) / 2, (bottom + frame.top) / 2], [right, frame.top]], atol=0.01
    )
    # the band ends at the axes, though the interval goes beyond 0 and 1
    band = figure.drawn("band")[0].get_path().vertices
    assert band[:, 1].min() == 0 and band[:, 1].max() == 1
    assert figure.tips("point")[1] == "answer, layer 1: 0.5 [0.4, 0.6], n = 9"
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "1", "2"]


def test_a_gap_splits_the_line() -> None:
    figure = draw(curves(series([0.1, math.nan, 0.3, 0.4])))
    np.testing.assert_array_equal(np.isnan(figure.drawn("line")[0].get_ydata()), [False, True, False, False])
    assert len(figure.tips("point")) == 3
    (band,) = figure.drawn("band")
    assert band.get_path().vertices[:, 0].min() == 2, "one point alone has no band"
    (line,) = [part for part in figure.markup().split("<path") if 'class="line"' in part]
    assert line.partition('"')[2].partition('"')[0].count("M") == 2


def test_a_single_layer_and_an_unknown_curve() -> None:
    figure = draw(curves(series([0.5], layers=[7]), series([math.nan], Group("b", "b", 1), layers=[7])))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["7"]
    assert len(figure.drawn("line")[1].get_ydata()) == 1 and len(figure.drawn("point")[1].get_ydata()) == 0
    assert [name.get_text() for name in figure.drawn("name")] == ["answer"]


def test_points_of_many_layers_do_not_show() -> None:
    assert draw(curves(series([0.1] * 40))).drawn("point")[0].get_alpha() is None
    (points,) = draw(curves(series([0.1] * 41))).drawn("point faint")
    assert points.get_alpha() == 0


def test_layers_that_were_skipped_leave_room() -> None:
    x = pixels(draw(curves(series([0.1, 0.2, 0.3], layers=[0, 1, 10]))), "line")[:, 0]
    assert x[2] - x[1] == pytest.approx(9 * (x[1] - x[0]))


def test_places_with_names() -> None:
    panel = replace(curves(series([0.1, 0.2])), x_label="Position", x_names=["first", "last"])
    figure = draw(panel)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["first", "last"]
    assert figure.tips("point")[1].startswith("answer, last: 0.2 ")
    assert panel.alt == "Probability over first to last. answer: 0.1 first, highest 0.2 at last, 0.2 last."


def test_baselines_lie_at_their_value_with_names_apart() -> None:
    lines = (Baseline("one", GROUP, 0.5), Baseline("other", GROUP, 0.51))
    figure = draw(curves(series([0.0, 1.0]), baselines=lines))
    at = [pixels(figure, "rule", index)[0, 1] for index in range(2)]
    assert at[0] == pytest.approx((WIDE.top + WIDE.height - WIDE.bottom) / 2)
    # the upper one's name above its line, the lower one's below
    assert [baseline_of(figure, index) for index in range(2)] == pytest.approx([at[0] + 13, at[1] - 5])


def test_names_of_lines_go_above_where_there_is_room() -> None:
    assert named_below([100, 150], 20) == [False, False]
    assert named_below([100, 110], 20) == [False, True]
    assert named_below([110, 100], 20) == [True, False]
    assert named_below([100, 100], 20) == [False, True]
    assert named_below([], 20) == []


def test_names_of_lines_near_the_axis_are_both_above() -> None:
    assert name_places([100, 110], 20, 300) == [(100, False), (110, True)]
    assert name_places([290, 299], 20, 300) == [(276, False), (290, False)]
    assert name_places([299, 290], 20, 300) == [(290, False), (276, False)]
    assert name_places([150, 299], 20, 300) == [(150, False), (299, False)]
    lines = (Baseline("one", GROUP, 0.0), Baseline("other", GROUP, 0.02))
    figure = draw(curves(series([0.0, 1.0]), baselines=lines))
    axis = WIDE.height - WIDE.bottom
    assert baseline_of(figure, 1) < baseline_of(figure, 0) < axis - 5 + 1e-6, "no name on the layers' numbers"


def test_an_axis_that_ends_below_one() -> None:
    figure = draw(curves(series([0.0, 0.25]), top=0.25))
    texts = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert texts == ["0", "0.05", "0.1", "0.15", "0.2", "0.25"]
    assert pixels(figure, "line")[1, 1] == pytest.approx(WIDE.top)


def test_names_are_left_out_where_they_do_not_fit() -> None:
    few = curves(*(series([0.0, 0.0], Group(str(i), f"group {i}", i)) for i in range(6)))
    many = curves(*(series([0.0, 0.0], Group(str(i), f"group {i}", i)) for i in range(40)))
    assert [name.get_text() for name in draw(few).drawn("name")] == [f"group {i}" for i in range(6)]
    assert few.names(WIDE) and not draw(many).drawn("name") and not draw(few, COMPACT).drawn("name")
    legend = [text.get_text() for text in figure_of([[(many, WIDE)]], title="many").texts]
    assert legend == ["many", "Probability", *(f"group {i}" for i in range(40))]
    assert [text.get_text() for text in figure_of([[(few, WIDE)], [(few, SMALL)]], title="few").texts] == [
        "few", "Probability", "Probability",
    ]  # fmt: skip


def test_a_ninth_curve_has_another_dash() -> None:
    figure = draw(curves(*(series([0.1, 0.2], Group(str(i), str(i), i)) for i in range(9))))
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.drawn("line")}
    assert len(looks) == 9 and len({color for color, _ in looks}) == 8


@pytest.mark.parametrize(
    ("layers", "at_most"), [(list(range(12)), 16), (list(range(80)), 16), (list(range(32)), 7), ([5], 7)]
)
def test_layer_ticks_are_integers_and_few(layers: list[int], at_most: int) -> None:
    ticks = layer_ticks(layers, at_most)
    assert 1 <= len(ticks) <= at_most
    assert set(ticks) <= set(range(min(layers), max(layers) + 1))
    assert len({b - a for a, b in pairwise(ticks)}) <= 1


@given(st.floats(1e-6, 1e6), st.integers(1, 5))
def test_value_axis_covers_the_data_without_waste(largest: float, intervals: int) -> None:
    low, high, ticks = value_axis(curves(series([0.0, largest], half=0.0), top=None), intervals)
    assert low == 0.0
    assert largest * (1 - 1e-6) <= high <= 2.1 * largest
    assert 2 <= len(ticks) <= intervals + 2
    assert ticks[-1] == pytest.approx(high)


def test_value_axis_has_round_numbers() -> None:
    def ticks(*mean: float, half: float = 0.0) -> list[float]:
        return value_axis(curves(series(list(mean), half=half), top=None), 2)[2]

    assert ticks(0.0, 10.02) == [0.0, 5.0, 10.0, 15.0]
    assert ticks(0.0, 6.8) == [0.0, 2.5, 5.0, 7.5]
    assert ticks(0.0, 4.0) == [0.0, 2.0, 4.0]
    assert ticks(-3.5, -1.0) == [-4.0, -2.0, 0.0]
    assert ticks(-3.5, -1.0, half=1.0) == [-6.0, -4.0, -2.0, 0.0], "what is below zero has its band on the axis too"


def test_value_axis_of_fractions_is_zero_to_one() -> None:
    assert value_axis(curves(series([0.001, 0.002])), 4) == (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0])
    assert value_axis(curves(series([0.0, 0.0], half=0.0), top=None), 2)[1] == 1.0


@given(st.lists(st.tuples(st.floats(-50, 450), st.floats(5, 40)), min_size=1, max_size=9))
def test_spread_keeps_order_room_and_distance(labels: list[tuple[float, float]]) -> None:
    wanted, heights = [w for w, _ in labels], [h for _, h in labels]
    centres = spread(wanted, heights, 0, 400)
    order = sorted(range(len(labels)), key=lambda i: wanted[i])
    edges = [(centres[i] - heights[i] / 2, centres[i] + heights[i] / 2) for i in order]
    assert edges[0][0] >= -1e-6
    assert edges[-1][1] <= 400 + 1e-6
    assert all(above[1] <= below[0] + 1e-6 for above, below in pairwise(edges))


def test_spread_leaves_alone_what_does_not_touch() -> None:
    assert spread([300, 20, 100], [10, 10, 10], 0, 400) == [300, 20, 100]
    assert spread([100, 100], [10, 10], 0, 400) == [95, 105]


def test_wrapped() -> None:
    assert wrapped("short", 40) == ["short"]
    assert wrapped("target concept in the target language (es)", 40) == [
        "target concept in the",
        "target language (es)",
    ]
    assert wrapped("one two three four", 9) == ["one two", "three fo…"]
    assert wrapped("x" * 30, 10) == ["x" * 10, "x" * 9 + "…"]

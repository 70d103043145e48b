"""Where things lie in the charts."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stages.report.curve_chart import (
    COMPACT,
    SMALL,
    WIDE,
    Frame,
    draw,
    layer_ticks,
    name_places,
    named_below,
    spread,
    value_axis,
    wrapped,
)
from pipeline.stages.report.sections.parts import Baseline, Group, Panel, Series

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


def panel(*curves: Series, top: float | None = 1.0, baselines: tuple[Baseline, ...] = ()) -> Panel:
    return Panel("probability", "Probability", "", "", top, curves, baselines)


def numbers(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+),([-\d.]+)", path)]


@pytest.mark.parametrize("frame", [WIDE, COMPACT, SMALL])
def test_points_lie_where_the_axes_say(frame: Frame) -> None:
    chart = draw(panel(series([0.0, 0.5, 1.0])), frame)
    (line,) = chart.lines
    at = {text: y for y, text in chart.y_ticks}
    across = {text: x for x, text in chart.x_ticks}
    middle = (at["0"] + at["1"]) / 2
    assert numbers(line.path) == [(across["0"], at["0"]), (across["1"], middle), (across["2"], at["1"])]
    assert at["1"] == frame.top
    assert at["0"] == frame.height - frame.bottom
    # the band ends at the axes, though the interval goes beyond 0 and 1
    assert {at["0"], at["1"]} <= {y for _, y in numbers(line.band)}
    assert all(frame.top <= y <= frame.height - frame.bottom for _, y in numbers(line.band))
    assert line.points[1][2] == "answer, layer 1: 0.5 [0.4, 0.6], n = 9"


def test_a_gap_splits_the_line() -> None:
    chart = draw(panel(series([0.1, math.nan, 0.3, 0.4])), WIDE)
    assert chart.lines[0].path.count("M") == 2
    assert len(chart.lines[0].points) == 3
    assert chart.lines[0].band.count("Z") == 1  # one point alone has no band


def test_a_single_layer_and_an_unknown_curve() -> None:
    chart = draw(panel(series([0.5], layers=[7]), series([math.nan], Group("b", "b", 1), layers=[7])), WIDE)
    assert chart.x_ticks[0][1] == "7"
    assert chart.lines[1].path == ""
    assert [label.lines for label in chart.labels] == [["answer"]]


def test_points_of_many_layers_do_not_show() -> None:
    assert not draw(panel(series([0.1] * 40)), WIDE).dense
    assert draw(panel(series([0.1] * 41)), WIDE).dense


def test_layers_that_were_skipped_leave_room() -> None:
    chart = draw(panel(series([0.1, 0.2, 0.3], layers=[0, 1, 10])), WIDE)
    x = [x for x, _ in numbers(chart.lines[0].path)]
    assert x[2] - x[1] == pytest.approx(9 * (x[1] - x[0]), abs=0.1)


def test_baselines_lie_at_their_value_with_names_apart() -> None:
    lines = (Baseline("one", GROUP, 0.5), Baseline("other", GROUP, 0.51))
    chart = draw(panel(series([0.0, 1.0]), baselines=lines), WIDE)
    half = next(y for y, text in chart.y_ticks if text == "0.5")
    assert chart.rules[0].y == half
    one, other = chart.rules  # the upper one's name above its line, the lower one's below
    assert (one.label_y, other.label_y) == (one.y + 13, other.y - 5)


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
    chart = draw(panel(series([0.0, 1.0]), baselines=lines), WIDE)
    one, other = chart.rules
    axis = WIDE.height - WIDE.bottom
    assert other.label_y < one.label_y < axis - 5, "no name on the layers' numbers"


def test_an_axis_that_ends_below_one() -> None:
    chart = draw(panel(series([0.0, 0.25]), top=0.25), WIDE)
    assert [text for _, text in chart.y_ticks] == ["0", "0.05", "0.1", "0.15", "0.2", "0.25"]
    assert chart.lines[0].points[1][1] == WIDE.top


def test_names_are_left_out_where_they_do_not_fit() -> None:
    few = [series([0.0, 0.0], Group(str(i), f"group {i}", i)) for i in range(6)]
    many = [series([0.0, 0.0], Group(str(i), f"group {i}", i)) for i in range(40)]
    assert [label.lines[0] for label in draw(panel(*few), WIDE).labels] == [f"group {i}" for i in range(6)]
    assert draw(panel(*many), WIDE).labels == []
    assert draw(panel(*few), COMPACT).labels == []


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
    low, high, ticks = value_axis(panel(series([0.0, largest], half=0.0), top=None), intervals)
    assert low == 0.0
    assert largest * (1 - 1e-6) <= high <= 2.1 * largest
    assert 2 <= len(ticks) <= intervals + 2
    assert ticks[-1] == pytest.approx(high)


def test_value_axis_has_round_numbers() -> None:
    assert value_axis(panel(series([0.0, 10.02], half=0.0), top=None), 2)[2] == [0.0, 5.0, 10.0, 15.0]
    assert value_axis(panel(series([0.0, 6.8], half=0.0), top=None), 2)[2] == [0.0, 2.5, 5.0, 7.5]
    assert value_axis(panel(series([0.0, 4.0], half=0.0), top=None), 2)[2] == [0.0, 2.0, 4.0]


def test_value_axis_of_fractions_is_zero_to_one() -> None:
    assert value_axis(panel(series([0.001, 0.002])), 4) == (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0])
    assert value_axis(panel(series([0.0, 0.0], half=0.0), top=None), 2)[1] == 1.0


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
    assert wrapped("short") == ["short"]
    assert wrapped("target concept in the target language (es)", 40) == [
        "target concept in the",
        "target language (es)",
    ]
    assert wrapped("one two three four", 9) == ["one two", "three fo…"]
    assert wrapped("x" * 30, 10) == ["x" * 10, "x" * 9 + "…"]

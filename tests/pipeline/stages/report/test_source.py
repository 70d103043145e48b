"""What the sections of a report share: where an axis ends, which examples are shown."""

from __future__ import annotations

import pytest

from pipeline.stages.evaluate.tables import CurveRow
from pipeline.stages.report.source import axis_top, chosen


@pytest.mark.parametrize(
    ("highest", "top"), [(0.05, 0.1), (0.1, 0.1), (0.13, 0.25), (0.4, 0.5), (0.51, 1.0), (0.999, 1.0), (1.02, 1.0)]
)
def test_the_axis_ends_at_one_or_where_little_is_left_empty(highest: float, top: float) -> None:
    def row(metric: str, value: float | None) -> CurveRow:
        return CurveRow("l", metric, "a", "", 0, value, None, 2, value, value, value, value)

    rows = [row("probability", highest), row("probability", 0.01), row("rank", 50.0), row("probability", None)]
    assert axis_top(rows) == top
    assert axis_top([*rows, row("baseline_target_probability", 0.8)]) == 1.0
    assert axis_top([row("entropy_bits", 3.0)]) == 1.0


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [(40, 3, [0, 20, 39]), (40, 1, [0]), (2, 3, [0, 1]), (1, 3, [0]), (0, 3, []), (40, 0, []), (5, 5, [0, 1, 2, 3, 4])],
)
def test_chosen_examples(count: int, wanted: int, expected: list[int]) -> None:
    assert chosen(count, wanted) == expected

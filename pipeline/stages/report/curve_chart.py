"""Where things lie in the page's charts: from a panel's numbers to coordinates. The markup is in `page.html.j2`.

The y axis of an SVG runs down: `Axis.at` turns a value into a coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.stages.report.sections.parts import Group, Panel, Series

__all__ = [
    "COMPACT",
    "HALF",
    "SMALL",
    "WIDE",
    "Axis",
    "Chart",
    "Frame",
    "draw",
    "layer_ticks",
    "name_places",
    "spread",
    "value_axis",
    "wrapped",
]

PALETTE = 8  # colours in the style sheet; a ninth series starts over with another dash
LINE_HEIGHT = 15.0
LABEL_CHARACTERS = 40  # that fit beside the plot
NAME_ROOM = 1.08  # the axis goes on above a dashed line, whose name stands on it
DENSE = 40  # layers above which points show only when pointed at


@dataclass(frozen=True)
class Frame:
    """Size of a chart and the margins around its plot, in SVG units; `labelled` names the curves at their ends."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    labelled: bool
    x_ticks: int
    y_ticks: int


WIDE = Frame(1040, 400, 38, 282, 14, 44, True, 16, 4)
COMPACT = Frame(380, 280, 34, 10, 12, 40, False, 7, 4)
HALF = Frame(500, 300, 38, 10, 12, 40, False, 12, 4)
SMALL = Frame(330, 178, 38, 10, 10, 36, False, 7, 2)


@dataclass(frozen=True)
class Axis:
    """A linear axis from values `low`..`high` to coordinates `start`..`stop`; values outside end at its ends."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """The coordinate of a value."""
        if self.high == self.low:
            return (self.start + self.stop) / 2
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 2)


@dataclass(frozen=True)
class Line:
    """One curve: SVG paths of the line and of its band, and (x, y, text) of its points."""

    style: str
    path: str
    band: str
    points: Sequence[tuple[float, float, str]]


@dataclass(frozen=True)
class Label:
    """A name at the end of a curve: lines of text from (x, y) on, and the path that leads to it."""

    style: str
    x: float
    y: float
    lines: Sequence[str]
    leader: str


@dataclass(frozen=True)
class Rule:
    """A dashed horizontal line with its name."""

    style: str
    y: float
    label: str
    label_y: float


@dataclass(frozen=True)
class Chart:
    """A chart ready for the template; ticks are (coordinate, text), and `dense` hides the points until pointed at."""

    frame: Frame
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line]
    rules: Sequence[Rule]
    labels: Sequence[Label]
    dense: bool
    layer_label: str


def style_of(group: Group | None) -> str:
    """The classes of the style sheet for a group's colour and dash."""
    if group is None:
        return "plain"
    return f"c{group.color % PALETTE} d{group.color // PALETTE % 3}"


def draw(panel: Panel, frame: Frame) -> Chart:
    """Lay a panel out in a frame."""
    layers = sorted({layer for series in panel.series for layer in series.layers})
    x = Axis(min(layers), max(layers), frame.left + 6, frame.width - frame.right - 6)
    low, high, y_ticks = value_axis(panel, frame.y_ticks)
    y = Axis(low, high, frame.height - frame.bottom, frame.top)
    lines = [_line(series, x, y) for series in panel.series]
    return Chart(
        frame=frame,
        x_ticks=[(x.at(layer), str(layer)) for layer in layer_ticks(layers, frame.x_ticks)],
        y_ticks=[(y.at(value), f"{value:g}") for value in y_ticks],
        lines=lines,
        rules=_rules(panel, y),
        labels=_labels(panel, x, y, frame) if frame.labelled else [],
        dense=len(layers) > DENSE,
        layer_label=panel.layer_label,
    )


def layer_ticks(layers: Sequence[int], at_most: int) -> list[int]:
    """Which layers are written on the axis: multiples of the smallest of 1, 2, 5, 10, 20, ... that gives few enough."""
    for step in (1, 2, 5, 10, 20, 50, 100, 200, 500):
        ticks = [layer for layer in range(min(layers), max(layers) + 1) if layer % step == 0]
        if len(ticks) <= at_most:
            return ticks or [min(layers)]
    return [min(layers), max(layers)]


def value_axis(panel: Panel, intervals: int) -> tuple[float, float, list[float]]:
    """(low, high, ticks) of the value axis: from 0 to the panel's top, or to a round number above all bands and lines.

    Arguments:
        panel: what is drawn.
        intervals: about how many there should be between ticks.
    """
    if panel.top is not None:
        count = intervals if panel.top == 1 else 5  # 0.1, 0.25 and 0.5 have round fifths, no round quarters
        return 0.0, panel.top, [panel.top * i / count for i in range(count + 1)]
    values = [v for series in panel.series for v in (*series.mean, *series.high) if math.isfinite(v)]
    lines = [NAME_ROOM * baseline.value for baseline in panel.baselines]
    largest = max([*values, *lines], default=1.0)
    if largest <= 0:
        return 0.0, 1.0, [0.0, 1.0]
    magnitude = 10.0 ** math.floor(math.log10(largest / (intervals + 1)))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude * (intervals + 1) >= largest * (1 - 1e-9))
    count = math.ceil(largest / step - 1e-9)
    return 0.0, step * count, [step * i for i in range(count + 1)]


def _stretches(series: Series) -> Iterator[list[int]]:
    """Indices of consecutive layers at which the mean is known."""
    stretch: list[int] = []
    for index, mean in enumerate(series.mean):
        if math.isfinite(mean):
            stretch.append(index)
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def _line(series: Series, x: Axis, y: Axis) -> Line:
    path, band, points = "", "", []
    for stretch in _stretches(series):
        path += _path([(x.at(series.layers[i]), y.at(series.mean[i])) for i in stretch])
        known = [i for i in stretch if math.isfinite(series.low[i]) and math.isfinite(series.high[i])]
        if len(known) > 1:
            upper = [(x.at(series.layers[i]), y.at(series.high[i])) for i in known]
            lower = [(x.at(series.layers[i]), y.at(series.low[i])) for i in reversed(known)]
            band += _path(upper + lower) + "Z"
        for i in stretch:
            interval = f" [{series.low[i]:.3g}, {series.high[i]:.3g}]" if i in known else ""
            name = f"{series.group.label}, " if series.group else ""
            text = f"{name}layer {series.layers[i]}: {series.mean[i]:.3g}{interval}, n = {series.n[i]}"
            points.append((x.at(series.layers[i]), y.at(series.mean[i]), text))
    return Line(style_of(series.group), path, band, points)


def _rules(panel: Panel, y: Axis) -> list[Rule]:
    heights = [y.at(baseline.value) for baseline in panel.baselines]
    return [
        Rule(style_of(baseline.group), at, baseline.label, round(anchor + 13 if below else anchor - 5, 2))
        for baseline, at, (anchor, below) in zip(
            panel.baselines, heights, name_places(heights, 20, y.start), strict=True
        )
    ]


def name_places(heights: Sequence[float], room: float, bottom: float) -> list[tuple[float, bool]]:
    """Where the names of lines go: (the height that a name keeps to, whether it goes below that height, not above).

    A name that would have to go below its line, but would lie on the axis there, takes the place above the line that
    is in its way, whose own name moves up a row.

    Arguments:
        heights: of the lines, from the top down.
        room: that a name needs.
        bottom: the height of the axis.
    """
    places = list(zip(heights, named_below(heights, room), strict=True))
    for index, (at, below) in enumerate(places):
        if below and bottom - at < room:
            above = [other for other in range(len(heights)) if other != index and 0 <= at - heights[other] < room]
            upper = min(above, key=lambda other: heights[other])
            places[index] = (heights[upper], False)
            places[upper] = (heights[upper] - 0.7 * room, False)
    return places


def named_below(heights: Sequence[float], room: float) -> list[bool]:
    """Whether a line's name goes below it, not above: only where another line just above leaves it no room.

    Arguments:
        heights: of the lines, from the top down.
        room: that a name needs.
    """
    return [
        any(
            0 <= at - other < room and (other < at or before < index)
            for before, other in enumerate(heights)
            if before != index
        )
        for index, at in enumerate(heights)
    ]


def wrapped(text: str, width: int = LABEL_CHARACTERS) -> list[str]:
    """Text on at most two lines of at most `width` characters, of about equal length; the rest becomes an ellipsis."""
    if len(text) <= width:
        return [text]
    fitting = [i for i, c in enumerate(text) if c == " " and i <= width and len(text) - i - 1 <= width]
    if fitting:
        cut = min(fitting, key=lambda i: abs(2 * i - len(text)))
        return [text[:cut], text[cut + 1 :]]
    cut = text.rfind(" ", 0, width + 1)
    cut = cut if cut > 0 else width
    rest = text[cut:].lstrip()
    return [text[:cut], rest if len(rest) <= width else rest[: width - 1] + "…"]


def _labels(panel: Panel, x: Axis, y: Axis, frame: Frame) -> list[Label]:
    """Names at the right ends, moved apart; none where they would not fit (the page then shows its legend instead)."""
    ends = []
    for series in panel.series:
        last = max((i for i, mean in enumerate(series.mean) if math.isfinite(mean)), default=None)
        if series.group is not None and last is not None:
            ends.append((y.at(series.mean[last]), x.at(series.layers[last]), series.group, wrapped(series.group.label)))
    heights = [LINE_HEIGHT * len(lines) + 3 for _, _, _, lines in ends]
    bottom = frame.height - frame.bottom + 12
    if sum(heights) > bottom - frame.top:
        return []
    centers = spread([end[0] for end in ends], heights, frame.top, bottom)
    edge = frame.width - frame.right
    return [
        Label(
            style=style_of(group),
            x=edge + 24,
            y=round(center - LINE_HEIGHT * (len(lines) - 1) / 2 + 4.5, 2),
            lines=lines,
            leader=_path([(at_x + 5, at_y), (edge + 6, at_y), (edge + 19, round(center, 2))]),
        )
        for (at_y, at_x, group, lines), center in zip(ends, centers, strict=True)
    ]


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Move labels apart as little as needed.

    Arguments:
        wanted: where the centre of each label should lie.
        heights: of the labels.
        low, high: ends of the room, which is large enough for all.

    Returns:
        The centres, in the order given; labels do not overlap and keep their order.
    """
    # Neighbours that touch form a block that lies where its labels want to be on average (pool adjacent violators).
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[list[int], float, float]] = []  # labels, height of the block, its centre

    def centre(labels: list[int]) -> tuple[float, float]:
        height, shift = 0.0, 0.0
        for i in labels:  # where the block's middle would lie if this label had its wish
            shift += wanted[i] - (height + heights[i] / 2)
            height += heights[i]
        middle = shift / len(labels) + height / 2
        return height, min(max(middle, low + height / 2), high - height / 2)

    for i in order:
        blocks.append(([i], *centre([i])))
        while len(blocks) > 1 and blocks[-2][2] + blocks[-2][1] / 2 > blocks[-1][2] - blocks[-1][1] / 2:
            merged = blocks[-2][0] + blocks[-1][0]
            blocks[-2:] = [(merged, *centre(merged))]
    centres = [0.0] * len(wanted)
    for labels, height, middle in blocks:
        top = middle - height / 2
        for i in labels:
            centres[i] = top + heights[i] / 2
            top += heights[i]
    return centres

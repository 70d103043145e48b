"""Panels of curves: mean and interval by layer, dashed lines of what runs without a lens give, names at the right ends.

Coordinates of names are in points from the top of the plot down, as the eye reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from interp.plots.figure import INK, PAPER, RULE, Figure, Frame, Group, named_dash, wrapped

__all__ = [
    "COMPACT",
    "HALF",
    "SMALL",
    "WIDE",
    "Baseline",
    "Curves",
    "Series",
    "layer_ticks",
    "name_places",
    "share_top",
    "spread",
    "value_axis",
]

WIDE = Frame(1040, 400, 38, 282, 14, 44, labelled=True, x_ticks=16, y_ticks=4)
COMPACT = Frame(380, 280, 34, 10, 12, 40, y_ticks=4)
HALF = Frame(500, 300, 38, 10, 12, 40, x_ticks=12, y_ticks=4)
SMALL = Frame(330, 178, 38, 10, 10, 36, font=12)
NAME_HEIGHT = 15.0  # of a line of a name at the end of a curve
NAME_LETTERS = 36  # that fit beside the plot
NAME_ROOM = 1.08  # the axis goes on above a dashed line, whose name stands on it
DENSE = 40  # places above which points show only when pointed at


@dataclass(frozen=True)
class Series:
    """One curve; every list is by place, NaN where unknown.

    Arguments:
        group: what it is of; None: of no group, drawn in ink.
        x: where each point lies: a layer, or the index of a name.
        mean, low, high: value and interval.
        n: how many examples count.
    """

    group: Group | None
    x: Sequence[int]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    n: Sequence[int]

    def stretches(self) -> Iterator[list[int]]:
        """Indices of consecutive places at which the mean is known."""
        stretch: list[int] = []
        for index, mean in enumerate(self.mean):
            if math.isfinite(mean):
                stretch.append(index)
            elif stretch:
                yield stretch
                stretch = []
        if stretch:
            yield stretch


@dataclass(frozen=True)
class Baseline:
    """A dashed horizontal line; in ink where no group is named."""

    label: str
    group: Group | None
    value: float


@dataclass(frozen=True)
class Curves:
    """One chart of curves.

    Arguments:
        metric: its name, as in `curves.parquet`.
        title, unit, note: for people.
        top: where the axis ends, for values between 0 and 1; None: at a round number above the values.
        series, baselines: what is drawn.
        caption: what the curves are, in a few words, under the chart; for a main panel.
        x_label: along the axis.
        x_names: what stands along it at 0, 1, ...; none: the numbers themselves.
    """

    metric: str
    title: str
    unit: str
    note: str
    top: float | None
    series: Sequence[Series]
    baselines: Sequence[Baseline] = ()
    caption: str = ""
    x_label: str = "Layer"
    x_names: Sequence[str] = ()

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def x(self) -> list[int]:
        """All places along the axis, ascending."""
        return sorted({x for series in self.series for x in series.x})

    @property
    def alt(self) -> str:
        """The chart in words, for those who do not see it."""
        parts = []
        for series in self.series:
            known = [(mean, x) for mean, x in zip(series.mean, series.x, strict=True) if math.isfinite(mean)]
            if known:
                best, at = max(known, key=lambda point: (point[0], -point[1]))
                name = f"{series.group.label}: " if series.group else ""
                highest = f"highest {best:.2g} at {self._place(at)}"
                parts.append(f"{name}{known[0][0]:.2g} first, {highest}, {known[-1][0]:.2g} last")
        unit = f" in {self.unit}" if self.unit else ""
        span = f"{self.x_names[0]} to {self.x_names[-1]}" if self.x_names else f"layers {self.x[0]} to {self.x[-1]}"
        return f"{self.title}{unit} over {span}. {'; '.join(parts)}."

    @property
    def groups(self) -> Sequence[Group]:
        """What the curves are of."""
        return [series.group for series in self.series if series.group]

    def names(self, frame: Frame) -> bool:
        """Whether the curves' names stand at their right ends: where the frame has room for all."""
        heights = [_name_height(lines) for _, lines in self._names()]
        return frame.labelled and bool(heights) and sum(heights) <= frame.plot[1] / frame.unit + 12

    def draw(self, axes: Axes, frame: Frame) -> None:
        """Draw the chart."""
        figure = axes.figure
        assert isinstance(figure, Figure)
        low, high, ticks = value_axis(self, frame.y_ticks)
        places, unit = self.x, frame.unit
        edge = 6 * unit / frame.plot[0]
        room = edge / (1 - 2 * edge) * (places[-1] - places[0]) or 0.5
        start, stop = places[0] - room, places[-1] + room
        axes.patch.set_visible(False)
        axes.set_xlim(start, stop)
        axes.set_ylim(low, high)
        axes.tick_params(labelsize=frame.font, width=unit, length=4 * unit, pad=4 * unit)
        axes.tick_params(axis="y", length=0, pad=6 * unit)
        axes.spines["bottom"].set_linewidth(unit)
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        if self.x_names:
            axes.set_xticks(range(len(self.x_names)), self.x_names, rotation=30, ha="right")
        else:
            axes.set_xticks(layer_ticks(places, frame.x_ticks))
        axes.set_xlabel(self.x_label, fontsize=frame.font, labelpad=4 * unit)
        figure.mark(axes.hlines(ticks, start, stop, colors=RULE, linewidth=unit, zorder=0), "grid")
        for series in self.series:
            self._draw_band(figure, axes, series, (low, high))
        self._draw_baselines(figure, axes, frame, high - low)
        for series in self.series:
            self._draw_curve(figure, axes, series, frame, (low, high))
        if self.names(frame):
            self._draw_names(figure, axes, frame, (start, stop), (low, high))

    def _place(self, x: int) -> str:
        return self.x_names[x] if self.x_names else f"layer {x}"

    def _draw_band(self, figure: Figure, axes: Axes, series: Series, limits: tuple[float, float]) -> None:
        areas = []
        for stretch in series.stretches():
            known = [i for i in stretch if math.isfinite(series.low[i]) and math.isfinite(series.high[i])]
            if len(known) > 1:  # one point alone has no band
                upper = [(series.x[i], _within(series.high[i], limits)) for i in known]
                lower = [(series.x[i], _within(series.low[i], limits)) for i in reversed(known)]
                areas.append(Path([*upper, *lower, upper[0]], closed=True))
        if areas:
            color = series.group.hue if series.group else INK
            band = PathPatch(Path.make_compound_path(*areas), facecolor=color, alpha=0.16, linewidth=0, zorder=1)
            figure.mark(axes.add_patch(band), "band")

    def _draw_curve(
        self, figure: Figure, axes: Axes, series: Series, frame: Frame, limits: tuple[float, float]
    ) -> None:
        color = series.group.hue if series.group else INK
        dash = named_dash(series.group) if series.group else "-"
        means = [_within(mean, limits) for mean in series.mean]
        (line,) = axes.plot(series.x, means, color=color, linestyle=dash, linewidth=2 * frame.unit, zorder=3)
        line.set_solid_capstyle("round")
        figure.mark(line, "line")
        shown = [i for stretch in series.stretches() for i in stretch]
        dense = len(self.x) > DENSE
        (points,) = axes.plot(
            [series.x[i] for i in shown], [means[i] for i in shown], linestyle="none", marker="o", color=color,
            markersize=5.2 * frame.unit, markeredgecolor=PAPER, markeredgewidth=0.8 * frame.unit, zorder=4,
            alpha=0.0 if dense else None,
        )  # fmt: skip
        figure.mark(points, "point faint" if dense else "point", [self._tip(series, i) for i in shown])

    def _tip(self, series: Series, i: int) -> str:
        known = math.isfinite(series.low[i]) and math.isfinite(series.high[i])
        interval = f" [{series.low[i]:.3g}, {series.high[i]:.3g}]" if known else ""
        name = f"{series.group.label}, " if series.group else ""
        return f"{name}{self._place(series.x[i])}: {series.mean[i]:.3g}{interval}, n = {series.n[i]}"

    def _draw_baselines(self, figure: Figure, axes: Axes, frame: Frame, span: float) -> None:
        height, unit = frame.plot[1] / frame.unit, frame.unit
        heights = [height * (1 - baseline.value / span) for baseline in self.baselines]
        for baseline, at, (anchor, below) in zip(
            self.baselines, heights, name_places(heights, 20, height), strict=True
        ):
            color = baseline.group.hue if baseline.group else INK
            level = [1 - at / height] * 2
            rule = Line2D([0, 1], level, color=color, linewidth=1.25 * unit, dashes=(4.8, 3.2), alpha=0.85, zorder=2,
                          transform=axes.transAxes)  # fmt: skip
            figure.mark(axes.add_line(rule), "rule")
            x, y = 6 * unit / frame.plot[0], 1 - (anchor + 13 if below else anchor - 5) / height
            text = axes.text(
                x, y, baseline.label, color=color, fontsize=11.5 * unit, transform=axes.transAxes, zorder=5,
                path_effects=[withStroke(linewidth=3 * unit, foreground=PAPER)],
            )  # fmt: skip
            figure.mark(text, "rule-name")

    def _names(self) -> list[tuple[int, list[str]]]:
        """(index of a series, its name in lines) of those that have a name and a point."""
        return [
            (index, wrapped(series.group.label, NAME_LETTERS))
            for index, series in enumerate(self.series)
            if series.group is not None and any(math.isfinite(mean) for mean in series.mean)
        ]

    def _draw_names(
        self, figure: Figure, axes: Axes, frame: Frame, across: tuple[float, float], limits: tuple[float, float]
    ) -> None:
        """Write the names at the right ends, moved apart, each with a line that leads to it."""
        unit = frame.unit
        width, height = (size / unit for size in frame.plot)
        ends = []
        for index, lines in self._names():
            series = self.series[index]
            last = max(i for i, mean in enumerate(series.mean) if math.isfinite(mean))
            x = (series.x[last] - across[0]) / (across[1] - across[0]) * width
            y = (limits[1] - _within(series.mean[last], limits)) / (limits[1] - limits[0]) * height
            ends.append((x, y, series, lines))
        centres = spread([y for _, y, _, _ in ends], [_name_height(end[3]) for end in ends], 0, height + 12)
        for (x, y, series, lines), centre in zip(ends, centres, strict=True):
            assert series.group is not None
            path = [(x + 5, y), (width + 6, y), (width + 19, centre)]
            leader = Line2D([x / width for x, _ in path], [1 - y / height for _, y in path], color=series.group.hue,
                            linewidth=unit, alpha=0.65, transform=axes.transAxes)  # fmt: skip
            figure.mark(axes.add_line(leader), "leader")
            name = axes.text(1 + 24 / width, 1 - centre / height, "\n".join(lines), color=series.group.hue, va="center",
                             fontsize=frame.font, linespacing=NAME_HEIGHT / 13, transform=axes.transAxes)  # fmt: skip
            figure.mark(name, "name")


def _within(value: float, limits: tuple[float, float]) -> float:
    return value if math.isnan(value) else min(max(value, limits[0]), limits[1])


def _name_height(lines: Sequence[str]) -> float:
    return NAME_HEIGHT * len(lines) + 3


def share_top(highest: float) -> float:
    """Where the axis of shares ends whose highest is given: at 1, or lower where that would leave most of it empty."""
    return next((top for top in (0.1, 0.25, 0.5) if highest <= top), 1.0)


def layer_ticks(layers: Sequence[int], at_most: int) -> list[int]:
    """Which layers are written on the axis: multiples of the smallest of 1, 2, 5, 10, 20, ... that gives few enough."""
    for step in (1, 2, 5, 10, 20, 50, 100, 200, 500):
        ticks = [layer for layer in range(min(layers), max(layers) + 1) if layer % step == 0]
        if len(ticks) <= at_most:
            return ticks or [min(layers)]
    return [min(layers), max(layers)]


def value_axis(panel: Curves, intervals: int) -> tuple[float, float, list[float]]:
    """(low, high, ticks) of the value axis: from 0, or a round number below all, to the panel's top or a round number.

    Arguments:
        panel: what is drawn; bands and lines count towards the top.
        intervals: about how many there should be between ticks.
    """
    if panel.top is not None:
        count = intervals if panel.top == 1 else 5  # 0.1, 0.25 and 0.5 have round fifths, no round quarters
        return 0.0, panel.top, [panel.top * i / count for i in range(count + 1)]
    values = [v for series in panel.series for v in (*series.mean, *series.high) if math.isfinite(v)]
    lines = [NAME_ROOM * baseline.value for baseline in panel.baselines]
    lowest = min((v for series in panel.series for v in series.mean if math.isfinite(v)), default=0.0)
    if lowest < 0:
        lowest = min(v for series in panel.series for v in (*series.mean, *series.low) if math.isfinite(v))
    lowest, largest = min(lowest, 0.0), max([*values, *lines], default=1.0)
    largest = max(largest, 0.0) if lowest < 0 else largest
    span = largest - lowest
    if span <= 0:
        return 0.0, 1.0, [0.0, 1.0]
    magnitude = 10.0 ** math.floor(math.log10(span / (intervals + 1)))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude * (intervals + 1) >= span * (1 - 1e-9))
    first, last = math.floor(lowest / step + 1e-9), math.ceil(largest / step - 1e-9)
    return step * first, step * last, [step * i for i in range(first, last + 1)]


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

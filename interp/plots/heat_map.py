"""Panels of tiles over two axes: one value each, or one token, the darker the higher.

Columns run from left to right, rows from the bottom up, as layers do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from interp.plots.curves import layer_ticks
from interp.plots.figure import PAPER, RULE, Figure, Frame, Group, number
from interp.plots.markup import NAMED_COLORS, SHADE_COLORS, SHADES

__all__ = ["HeatMap"]

TICKS = 9
WRITTEN = 9  # places along an axis up to which numbers are written into the tiles
EXPLAINED = 1200  # tiles up to which each says its numbers when pointed at; above, a page would grow too large
DARK = 0.765  # share of the strongest colour above which ink is light: there black and white stand out alike
BAR = 30.0  # width of the colour bar and its numbers


@dataclass(frozen=True)
class HeatMap:
    """One map.

    Arguments:
        metric: its name, as in `grids.parquet`.
        title, unit, note: for people.
        group: the group that it is about; None: none.
        rows, columns: what stands along the axes.
        mean, low, high: [row][column], NaN where unknown.
        n: [row][column], examples that count.
        top: the value of the strongest colour.
        bottom: of the faintest.
        row_label, column_label: along the axes.
        where: a tile's place in words, `{row}` and `{column}` in it.
        texts: [row][column], what is written in the tiles; none: their numbers, where the tiles are few.
        tips: [row][column], what a tile says besides its value.
    """

    metric: str
    title: str
    unit: str
    note: str
    group: Group | None
    rows: Sequence[int | str]
    columns: Sequence[int | str]
    mean: Sequence[Sequence[float]]
    low: Sequence[Sequence[float]]
    high: Sequence[Sequence[float]]
    n: Sequence[Sequence[int]]
    top: float
    bottom: float = 0.0
    row_label: str = "Source layer"
    column_label: str = "Target layer"
    where: str = "source layer {row} into layer {column}"
    texts: Sequence[Sequence[str]] = ()
    tips: Sequence[Sequence[str]] = ()

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def alt(self) -> str:
        """The map in words, for those who do not see it."""
        known = [
            (mean, row, column)
            for row, line in zip(self.rows, self.mean, strict=True)
            for column, mean in zip(self.columns, line, strict=True)
            if math.isfinite(mean)
        ]
        unit = f" in {self.unit}" if self.unit else ""
        over = f"{self.title}{unit} by {self.row_label.lower()} and {self.column_label.lower()}"
        if not known:
            return f"{over}: nothing is known."
        best, row, column = max(known, key=lambda cell: cell[0])
        return f"{over}: highest {best:.2g}, {self.where.format(row=row, column=column)}."

    def frame(self, bar: bool = False, tile: tuple[float, float] | None = None) -> Frame:
        """A frame whose tiles are square where rows and columns are equally many.

        Arguments:
            bar: leave room for a colour bar.
            tile: width and height of a tile; None: all is 330 points wide.
        """
        left, right, top, bottom = 46.0, 6.0 + (BAR if bar else 0.0), 6.0, 40.0
        if any(isinstance(place, str) for place in self.rows):
            left = 30.0 + 7.0 * max(len(str(row)) for row in self.rows)
        if any(isinstance(place, str) for place in self.columns):
            bottom = 30.0 + 5.0 * max(len(str(column)) for column in self.columns)
        side = (330.0 - 52.0) / max(len(self.rows), len(self.columns))
        width, height = tile or ((330.0 - 52.0) / len(self.columns), side)
        return Frame(left + width * len(self.columns) + right, top + height * len(self.rows) + bottom,
                     left, right, top, bottom, font=11.5)  # fmt: skip

    @property
    def groups(self) -> Sequence[Group]:
        """None: a map is of one group, which its heading names."""
        return []

    def names(self, frame: Frame) -> bool:
        """It does."""
        return True

    def draw(self, axes: Axes, frame: Frame) -> None:
        """Draw the map."""
        figure = axes.figure
        assert isinstance(figure, Figure)
        unit = frame.unit
        axes.patch.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xlim(0, len(self.columns))
        axes.set_ylim(0, len(self.rows))
        axes.tick_params(length=0, labelsize=frame.font, pad=4 * unit)
        for axis, places, label in (
            (axes.xaxis, self.columns, self.column_label),
            (axes.yaxis, self.rows, self.row_label),
        ):
            ticks = _ticks(places)
            axis.set_ticks([at + 0.5 for at, _ in ticks], [text for _, text in ticks])
            axis.set_label_text(label, fontsize=frame.font)
            axis.labelpad = 5 * unit
        if any(isinstance(place, str) for place in self.columns):
            axes.tick_params(axis="x", labelrotation=45)
            for text in axes.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
        shares = [[_share(mean, self.bottom, self.top) for mean in line] for line in self.mean]
        if sum(math.isfinite(share) for line in shares for share in line) > EXPLAINED:
            _draw_shades(figure, axes, shares)
        else:
            self._draw_tiles(figure, axes, shares, unit)
        around = Rectangle((0, 0), len(self.columns), len(self.rows), fill=False, edgecolor=RULE, linewidth=unit)
        figure.mark(axes.add_patch(around), "frame")
        if frame.right > BAR * unit:
            self._draw_bar(figure, axes, frame)

    def _draw_tiles(self, figure: Figure, axes: Axes, shares: Sequence[Sequence[float]], unit: float) -> None:
        # A colour bar of matplotlib's own would draw more than 50 colours as an image, which is not sharp at any size.
        mesh = axes.pcolormesh(
            np.arange(len(self.columns) + 1), np.arange(len(self.rows) + 1), np.ma.masked_invalid(shares),
            cmap=ListedColormap(SHADE_COLORS), vmin=-0.5 / SHADES, vmax=1 + 0.5 / SHADES, edgecolor=PAPER,
            linewidth=0.6 * unit,
        )  # fmt: skip
        known = [[math.isfinite(share) for share in line] for line in shares]
        tips = [
            self._tip(row, column) if known[row][column] else None
            for row in range(len(self.rows))
            for column in range(len(self.columns))
        ]
        figure.mark(mesh, "tile", tips)
        if not self.texts and max(len(self.rows), len(self.columns)) > WRITTEN:
            return
        for row, line in enumerate(shares):
            for column, share in enumerate(line):
                text = self.texts[row][column] if self.texts else _short(self.mean[row][column])
                if known[row][column] and text:
                    ink = NAMED_COLORS["--heat-ink" if share > DARK else "--tile-ink"]
                    written = axes.text(column + 0.5, row + 0.5, text, color=ink, fontsize=12 * unit, ha="center")
                    written.set_verticalalignment("center_baseline")
                    figure.mark(written, "tile-text", [self._tip(row, column)])

    def _tip(self, row: int, column: int) -> str:
        low, high, n = self.low[row][column], self.high[row][column], self.n[row][column]
        interval = f" [{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
        said = f"{self.tips[row][column]}, " if self.tips else ""
        where = self.where.format(row=self.rows[row], column=self.columns[column])
        return f"{where}: {said}{number(self.mean[row][column])}{interval}, n = {n}"

    def _draw_bar(self, figure: Figure, axes: Axes, frame: Frame) -> None:
        box = axes.get_position()
        width = frame.plot[0] / box.width
        bar = figure.add_axes((box.x1 + 7 * frame.unit / width, box.y0, 6 * frame.unit / width, box.height))
        shades = bar.pcolormesh(np.linspace(0, 1, SHADES + 1)[:, None], cmap=ListedColormap(SHADE_COLORS), linewidth=0)
        figure.mark(shades, "bar")
        bar.spines["bottom"].set_visible(False)
        bar.set_xticks([])
        bar.yaxis.tick_right()
        bar.set_yticks([0, SHADES + 1], [f"{self.bottom:.3g}", f"{self.top:.3g}"])
        bar.tick_params(length=0, labelsize=0.85 * frame.font, pad=2 * frame.unit)


def _share(value: float, bottom: float, top: float) -> float:
    """Of the strongest colour, 0 to 1."""
    if not math.isfinite(value):
        return math.nan
    return min(max((value - bottom) / (top - bottom), 0.0), 1.0) if top > bottom else 0.0


def _ticks(places: Sequence[int | str]) -> list[tuple[int, str]]:
    """(index along the axis, text) of what is written at it: every name, some of many layers."""
    if any(isinstance(place, str) for place in places):
        return [(index, str(place)) for index, place in enumerate(places)]
    layers = [int(place) for place in places]
    wanted = layer_ticks(layers, TICKS)
    return [(index, str(layer)) for index, layer in enumerate(layers) if layer in wanted] or [(0, str(layers[0]))]


def _draw_shades(figure: Figure, axes: Axes, shares: Sequence[Sequence[float]]) -> None:
    """Tiles of about one colour as one path each, so that a page of many layers stays small."""
    corners: dict[int, list[tuple[int, int]]] = {}
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            if math.isfinite(share):
                corners.setdefault(round(share * SHADES), []).append((column, row))
    for shade, tiles in sorted(corners.items()):
        squares = [Path([(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1), (x, y)], closed=True) for x, y in tiles]
        patch = PathPatch(Path.make_compound_path(*squares), facecolor=SHADE_COLORS[shade], linewidth=0)
        figure.mark(axes.add_patch(patch), "tile")


def _short(value: float) -> str:
    """A number of few characters, for a tile."""
    if abs(value) < 0.005:
        return "0"
    if 0 < value < 0.995:
        return f"{value:.2f}".removeprefix("0")
    return f"{value:.2g}" if abs(value) >= 9.95 else f"{value:.1f}"

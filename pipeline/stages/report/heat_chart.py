"""Where things lie in the page's heat maps over source and target layers. The markup is in `page.html.j2`.

Columns are target layers, from left to right; rows are source layers, from the bottom up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.stages.report.curve_chart import layer_ticks
from pipeline.stages.report.sections.parts import HeatMap
from pipeline.stages.report.words import number

__all__ = ["HeatChart", "Tile", "draw_heat_map", "layer_places"]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 330.0, 46.0, 6.0, 6.0, 40.0
TICKS = 9
WRITTEN = 9  # layers along an axis up to which the numbers are written into the tiles
EXPLAINED = 1200  # tiles up to which each says its numbers when pointed at; above, a page would grow too large
SHADES = 40
DARK = 0.765  # share of the strongest colour above which ink is light: there black and white stand out alike


@dataclass(frozen=True)
class Tile:
    """One cell: its corner, its share of the strongest colour, what is written in it, and what it says."""

    x: float
    y: float
    share: float
    text: str
    title: str

    @property
    def hot(self) -> bool:
        """Whether it is so dark that ink must be light."""
        return self.share > DARK


@dataclass(frozen=True)
class HeatChart:
    """A heat map ready for the template.

    Arguments:
        width, height: of the picture; left, right, top, bottom: margins.
        tile_width, tile_height: of a cell.
        tiles: the cells that are drawn one by one; none where there are too many.
        shades: (share of the strongest colour, SVG path of all cells of that shade), where there are too many.
        x_ticks, y_ticks: (coordinate, text).
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    tile_width: float
    tile_height: float
    tiles: Sequence[Tile]
    shades: Sequence[tuple[float, str]]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def draw_heat_map(heat: HeatMap) -> HeatChart:
    """Lay a heat map out; cells are square where source and target layers are equally many."""
    columns, rows = len(heat.targets), len(heat.sources)
    tile_width = (WIDTH - LEFT - RIGHT) / columns
    tile_height = (WIDTH - LEFT - RIGHT) / max(rows, columns)
    height = TOP + rows * tile_height + BOTTOM
    written = max(rows, columns) <= WRITTEN
    tiles = []
    for row in range(rows):
        for column in range(columns):
            mean = heat.mean[row][column]
            if not math.isfinite(mean):
                continue
            tiles.append(
                Tile(
                    x=round(LEFT + column * tile_width, 2),
                    y=round(TOP + (rows - 1 - row) * tile_height, 2),
                    share=min(max(mean / heat.top, 0.0), 1.0),
                    text=_short(mean) if written else "",
                    title=_title(heat, row, column),
                )
            )
    dense = len(tiles) > EXPLAINED
    return HeatChart(
        width=WIDTH, height=round(height, 2), left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM,
        tile_width=round(tile_width, 2), tile_height=round(tile_height, 2),
        tiles=[] if dense else tiles,
        shades=_shades(tiles, tile_width, tile_height) if dense else [],
        x_ticks=[(round(LEFT + (at + 0.5) * tile_width, 2), text) for at, text in layer_places(heat.targets)],
        y_ticks=[(round(TOP + (rows - 0.5 - at) * tile_height, 2), text) for at, text in layer_places(heat.sources)],
    )  # fmt: skip


def layer_places(layers: Sequence[int]) -> list[tuple[int, str]]:
    """(index along the axis, text) of the layers that are written at it."""
    wanted = layer_ticks(layers, TICKS)
    return [(index, str(layer)) for index, layer in enumerate(layers) if layer in wanted] or [(0, str(layers[0]))]


def _shades(tiles: Sequence[Tile], width: float, height: float) -> list[tuple[float, str]]:
    """Tiles of about one colour as one path each, so that a page of many layers stays small."""
    paths: dict[int, str] = {}
    for tile in tiles:
        shade = round(tile.share * SHADES)
        paths[shade] = paths.get(shade, "") + f"M{tile.x:g},{tile.y:g}h{width:.2f}v{height:.2f}h-{width:.2f}z"
    return [(shade / SHADES, path) for shade, path in sorted(paths.items())]


def _title(heat: HeatMap, row: int, column: int) -> str:
    low, high = heat.low[row][column], heat.high[row][column]
    interval = f" [{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
    place = f"source layer {heat.sources[row]} into layer {heat.targets[column]}"
    return f"{place}: {number(heat.mean[row][column])}{interval}, n = {heat.n[row][column]}"


def _short(value: float) -> str:
    """A number of few characters, for a tile."""
    if value < 0.005:
        return "0"
    if value < 0.995:
        return f"{value:.2f}".removeprefix("0")
    return f"{value:.2g}" if value >= 9.95 else f"{value:.1f}"

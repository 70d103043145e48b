"""Heat maps: tiles lie where their layers are, in the shade of their value, and say their numbers."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from interp.plots import Group, HeatMap, figure_of
from interp.plots.heat_map import EXPLAINED
from interp.plots.markup import SHADE_COLORS

ROWS, COLUMNS = [0, 5], [2, 3, 7]
MEAN = [[0.0, 0.5, 1.0], [math.nan, 0.25, 0.005]]


def heat_map(mean: list[list[float]], rows: list, columns: list, **fields: object) -> HeatMap:
    low = [[value - 0.1 for value in line] for line in mean]
    high = [[value + 0.1 for value in line] for line in mean]
    counts = [[9] * len(line) for line in mean]
    group = Group("a", "answer", 0)
    return HeatMap("probability", "P", "", "", group, rows, columns, mean, low, high, counts, **{"top": 1.0, **fields})


def test_tiles_say_their_numbers_in_their_shade() -> None:
    heat = heat_map(MEAN, ROWS, COLUMNS)
    figure = figure_of([[(heat, heat.frame())]])
    assert figure.tips("tile") == [
        "source layer 0 into layer 2: 0.000 [−0.100, 0.100], n = 9",
        "source layer 0 into layer 3: 0.500 [0.400, 0.600], n = 9",
        "source layer 0 into layer 7: 1.000 [0.900, 1.100], n = 9",
        "source layer 5 into layer 3: 0.250 [0.150, 0.350], n = 9",
        "source layer 5 into layer 7: 0.005 [−0.095, 0.105], n = 9",
    ]
    (mesh,) = figure.drawn("tile")
    figure.draw_without_rendering()
    colors = [tuple(round(255 * part) for part in color[:3]) for color in mesh.get_facecolors()]
    wanted = [SHADE_COLORS[round(40 * share)] for share in (0, 0.5, 1, 0.25, 0.005)]
    assert [colors[at] for at in (0, 1, 2, 4, 5)] == [tuple(bytes.fromhex(color[1:])) for color in wanted]
    assert [text.get_text() for text in figure.drawn("tile-text")] == ["0", ".50", "1.0", ".25", ".01"]
    assert [text.get_color() for text in figure.drawn("tile-text")] == [
        "#010101",
        "#010101",
        "#fdfdfd",
        *["#010101"] * 2,
    ]
    assert heat.alt == "P by source layer and target layer: highest 1, source layer 0 into layer 7."


def test_tiles_lie_where_their_layers_are() -> None:
    heat = heat_map(MEAN, ROWS, COLUMNS)
    frame = heat.frame()
    svg = ElementTree.fromstring(figure_of([[(heat, frame)]]).markup())
    starts = {}
    for tile in svg.iter("path"):
        if tile.get("class") == "tile":
            x, y = map(float, tile.attrib["d"].removeprefix("M").partition("H")[0].split())
            starts[tile[0].text.partition(":")[0]] = (x, y)
    width = frame.plot[0] / 3
    assert frame.plot[1] == pytest.approx(2 * width), "tiles are square"
    x, y = zip(*(starts[f"source layer 0 into layer {layer}"] for layer in COLUMNS), strict=True)
    assert x == pytest.approx([frame.left, frame.left + width, frame.left + 2 * width], abs=0.01)
    assert y == pytest.approx([frame.height - frame.bottom] * 3, abs=0.01)
    assert starts["source layer 5 into layer 3"][1] == pytest.approx(y[0] - width, abs=0.01), "rows run upward"


def test_a_map_of_many_layers_stays_small() -> None:
    layers = list(range(80))
    values = [[(source + target) / 158 for target in layers] for source in layers]
    heat = heat_map(values, layers, layers)
    figure = figure_of([[(heat, heat.frame())]])
    assert len(layers) ** 2 > EXPLAINED and not figure.tips("tile")
    tiles = [tile for tile in ElementTree.fromstring(figure.markup()).iter("path") if tile.get("class") == "tile"]
    assert sum(tile.attrib["d"].count("M") for tile in tiles) == len(layers) ** 2, "every tile is drawn"
    assert sum(len(tile.attrib["d"]) for tile in tiles) < 300_000
    assert {patch.get_facecolor() for patch in figure.drawn("tile")} and len(tiles) <= len(SHADE_COLORS)


def test_texts_and_names_in_place_of_numbers() -> None:
    heat = heat_map(
        [[0.9, math.nan]], ["a"], ["first", "last"], texts=[["<s>", ""]], tips=[["<s>, token 1", ""]],
        row_label="Layer", column_label="Position", where="layer {row}, position {column}",
    )  # fmt: skip
    figure = figure_of([[(heat, heat.frame(bar=True))]])
    assert [text.get_text() for text in figure.drawn("tile-text")] == ["<s>"]
    assert figure.tips("tile") == ["layer a, position first: <s>, token 1, 0.900 [0.800, 1.000], n = 9"]
    axes, bar = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["first", "last"]
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["0", "1"]


def test_a_map_of_which_nothing_is_known() -> None:
    heat = heat_map([[math.nan] * 2], [0], [0, 1])
    figure = figure_of([[(heat, heat.frame())]])
    assert heat.alt.endswith("nothing is known.") and not figure.tips("tile")
    assert 'class="tile"' not in figure.markup() and np.isfinite(figure.get_figheight())

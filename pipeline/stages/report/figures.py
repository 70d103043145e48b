"""The static figures of a run, for papers and slides: one per lens, the same bytes for the same numbers."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from pipeline.stages.report.curve_chart import layer_ticks, name_places, spread, value_axis, wrapped
from pipeline.stages.report.heat_chart import layer_places
from pipeline.stages.report.sections.parts import Comparison, HeatMap, LensSection, Panel, Series

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

__all__ = ["COLORS", "save_comparison", "save_figure"]

# Okabe and Ito (2008), darkened where a line would be too faint on white; the page uses the same.
COLORS = ("#0072B2", "#D55E00", "#00805E", "#B0568B", "#2F95CF", "#B97F00", "#6B6B6B", "#7A4A1E")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))
STRIP = ("entropy_bits", "entropy_nats", "kl_nats", "generated_tokens")
INK, FAINT = "#222222", "#dddddd"
STYLE: dict[RcKeyType, Any] = {
    "svg.hashsalt": "interpipe",
    "svg.fonttype": "path",  # looks the same wherever it is opened
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


def save_figure(section: LensSection, path: Path) -> None:
    """Draw one lens: its curves, with intervals and baselines, or its heat maps.

    Arguments:
        section: what the report says about the lens.
        path: where it is written; its suffix (`.svg`, `.png`) is the format.
    """
    with _styled():
        _save(_heat_maps(section) if section.heat_maps else _curves(section), path)


def save_comparison(comparison: Comparison, path: Path) -> None:
    """Draw lenses beside each other: a chart for each metric, a curve for each lens.

    Arguments:
        comparison: what the report says about them.
        path: as in `save_figure`.
    """
    with _styled():
        _save(_compared(comparison), path)


@contextlib.contextmanager
def _styled() -> Iterator[None]:
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A label may hold a script that the font lacks: it shows as boxes, which is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _compared(comparison: Comparison) -> Figure:
    panels = comparison.panels
    figure = Figure(figsize=(3.6 * len(panels), 3.2), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        _draw(axes, panel, 150.0)
        axes.set_xlabel(f"{panel.layer_label}  ({comparison.n_text})")
        axes.set_xticks(layer_ticks(sorted({layer for series in panel.series for layer in series.layers}), 12))
    names = {line.get_label(): line for axes in grid[0] for line in axes.get_lines()}
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=7.5)
    return figure


def _curves(section: LensSection) -> Figure:
    """Probabilities above, entropy and KL divergence below."""
    panels = [*([section.main] if section.main else []), *(p for p in section.panels if p.metric in STRIP)]
    ratios = [3.2 if panel is section.main else 1.0 for panel in panels]
    figure = Figure(figsize=(7.2, 0.5 + 0.95 * sum(ratios)), layout=None)
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})
    figure.subplots_adjust(
        left=0.05,
        right=0.66,
        top=1 - 0.25 / figure.get_figheight(),
        bottom=0.42 / figure.get_figheight(),
        hspace=0.3,
    )
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        _draw(axes, panel, _points(figure, axes))
    if section.main:
        _name_curves(grid[0, 0], section.main, _points(figure, grid[0, 0]))
    grid[-1, 0].set_xlabel(f"{panels[0].layer_label}  ({section.n_text})")
    grid[-1, 0].set_xticks(layer_ticks(panels[0].series[0].layers, 16))
    return figure


def _heat_maps(section: LensSection) -> Figure:
    """A map for each group and metric, three side by side."""
    maps = section.heat_maps
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(0.6 + 2.5 * columns, 0.4 + 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, heat in zip(grid.flat, maps, strict=False):
        _draw_heat_map(figure, axes, heat)
    for axes in grid.flat[len(maps) :]:
        axes.set_axis_off()
    figure.supxlabel(f"Target layer  ({section.n_text})", fontsize=8, color=INK)
    figure.supylabel("Source layer", fontsize=8, color=INK)
    return figure


def _draw_heat_map(figure: Figure, axes: Axes, heat: HeatMap) -> None:
    color = COLORS[heat.group.color % len(COLORS)] if heat.group else INK
    # Cells as paths, sharp at any size; above 50 colours matplotlib draws the bar beside them as an image.
    shades = matplotlib.colormaps["Blues"].resampled(40)
    mesh = axes.pcolormesh(np.array(heat.mean), vmin=0, vmax=heat.top, cmap=shades, linewidth=0)
    title = f"{heat.title} ({heat.unit})" if heat.unit else heat.title
    axes.set_title("\n".join(wrapped(title, 30)), loc="left", fontsize=7.5, color=color)
    for axis, layers in ((axes.xaxis, heat.targets), (axes.yaxis, heat.sources)):
        places = layer_places(layers)
        axis.set_ticks([at + 0.5 for at, _ in places], [text for _, text in places], fontsize=6.5)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=6, width=0.4)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})
    else:
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=200, format="png", metadata={"Software": None})


def _look(series: Series) -> dict[str, Any]:
    if series.group is None:
        return {"color": INK, "linestyle": "-"}
    color = series.group.color
    return {"color": COLORS[color % len(COLORS)], "linestyle": DASHES[color // len(COLORS) % len(DASHES)]}


def _points(figure: Figure, axes: Axes) -> float:
    """Height of a plot in typographic points."""
    return float(axes.get_position().height * figure.get_figheight() * 72)


def _draw(axes: Axes, panel: Panel, points: float) -> None:
    low, high, ticks = value_axis(panel, 4 if panel.series[0].group else 2)
    axes.set_ylim(low, high)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_title(f"{panel.title} ({panel.unit})" if panel.unit else panel.title, loc="left", fontsize=8, pad=5)
    for series in panel.series:
        look = _look(series)
        axes.fill_between(series.layers, series.low, series.high, color=look["color"], alpha=0.18, linewidth=0)
        name = series.group.label if series.group else None
        axes.plot(series.layers, series.mean, linewidth=1.4, marker="o", markersize=2.2, label=name, **look)
    places = name_places([-baseline.value / high * points for baseline in panel.baselines], 10, 0)
    for baseline, (anchor, under) in zip(panel.baselines, places, strict=True):
        color = COLORS[baseline.group.color % len(COLORS)] if baseline.group else INK
        axes.axhline(baseline.value, color=color, linewidth=0.8, dashes=(4, 3))
        axes.annotate(
            baseline.label, (0.005, -anchor * high / points), (0, -2 if under else 2),
            xycoords=("axes fraction", "data"), textcoords="offset points", color=color, fontsize=6.5,
            va="top" if under else "bottom", path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip


def _name_curves(axes: Axes, panel: Panel, points: float) -> None:
    """Write each curve's name at its right end, moved apart."""
    _, highest, _ = value_axis(panel, 1)
    names = []
    for series in panel.series:
        last = max((i for i, mean in enumerate(series.mean) if math.isfinite(mean)), default=None)
        if series.group is not None and last is not None:
            names.append((series.mean[last], series, wrapped(series.group.label)))
    heights = [9.5 * len(lines) + 2 for _, _, lines in names]
    room = max(points, sum(heights))
    centres = spread([mean / highest * points for mean, _, _ in names], heights, points - room, points)
    for (mean, series, lines), centre in zip(names, centres, strict=True):
        color = _look(series)["color"]
        axes.annotate(
            "\n".join(lines), (1.0, mean), (1.045, centre / points), xycoords=("axes fraction", "data"),
            textcoords="axes fraction", color=color, va="center", fontsize=7.5, linespacing=1.15, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0,
                        "relpos": (0.0, 0.5)},
        )  # fmt: skip

"""Figures of results and of a report: each panel is drawn by one function, for page, notebook and paper.

matplotlib is needed when something is drawn, not before: `pip install 'interpipe[display]'`.
"""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    message = "the figures need matplotlib: pip install 'interpipe[display]', or pip install matplotlib."
    raise ImportError(message) from error

from interp.plots.circuit_figure import edges_figure, faithfulness_figure
from interp.plots.curves import COMPACT, HALF, SMALL, WIDE, Baseline, Curves, Series, share_top
from interp.plots.figure import Figure, Frame, Group, Panel, figure_of, number, save_figure
from interp.plots.heat_map import HeatMap
from interp.plots.lens import lens_figure
from interp.plots.markup import COLORS, NAMED_COLORS
from interp.plots.patching_figure import patching_figure
from interp.plots.results import attribution_figure, generation_figure

__all__ = [
    "COLORS",
    "COMPACT",
    "HALF",
    "NAMED_COLORS",
    "SMALL",
    "WIDE",
    "Baseline",
    "Curves",
    "Figure",
    "Frame",
    "Group",
    "HeatMap",
    "Panel",
    "Series",
    "attribution_figure",
    "edges_figure",
    "faithfulness_figure",
    "figure_of",
    "generation_figure",
    "lens_figure",
    "number",
    "patching_figure",
    "save_figure",
    "share_top",
]

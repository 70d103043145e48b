"""Figures of results, as plotly figures: values that can be looked into, shown and written.

plotly is needed when a figure is drawn, not before: `pip install 'interpipe[display]'`.
"""

from interp.plots.lens import lens_figure
from interp.plots.results import attribution_figure, generation_figure
from interp.plots.style import escaped, graph_objects, make_subplots, save_figure, token_heat_map
from interp.text import visible

__all__ = [
    "attribution_figure",
    "escaped",
    "generation_figure",
    "graph_objects",
    "lens_figure",
    "make_subplots",
    "save_figure",
    "token_heat_map",
    "visible",
]

"""Figures of results, as plotly figures: values that can be looked into, shown and written.

plotly is needed when a figure is drawn, not before: `pip install 'interpipe[display]'`.
"""

from interp.display.attribution import attribution_figure
from interp.display.generation import generation_figure
from interp.display.heat_map import token_heat_map
from interp.display.lens import lens_figure
from interp.display.plotly import graph_objects, make_subplots, save_figure
from interp.display.text import escaped
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

"""plotly, which is optional; what figures share, the heat map of top tokens among it; and files."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["COLORS", "FONT", "escaped", "graph_objects", "make_subplots", "save_figure", "token_heat_map", "with_alpha"]

# Okabe and Ito's colours, told apart also by people who are colour-blind; yellow, too light on white, is left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
FONT = {"family": "system-ui, 'Noto Sans', sans-serif", "size": 13}
_MESSAGE = "the figures need plotly: pip install 'interpipe[display]', or pip install plotly."


def graph_objects() -> Any:
    """The module `plotly.graph_objects`.

    Raises:
        ImportError: plotly is not installed; says what to install.
    """
    try:
        import plotly.graph_objects
    except ImportError as error:
        raise ImportError(_MESSAGE) from error
    return plotly.graph_objects


def make_subplots(**options: Any) -> Any:
    """plotly's `make_subplots`, options and all.

    Raises:
        ImportError: plotly is not installed; says what to install.
    """
    try:
        from plotly.subplots import make_subplots as make
    except ImportError as error:
        raise ImportError(_MESSAGE) from error
    return make(**options)


def with_alpha(color: str, alpha: float) -> str:
    """`#RRGGBB` as plotly's `rgba(...)`."""
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def escaped(text: str) -> str:
    """Text as plotly shows it letter by letter: it reads tags (`<b>`) and entities (`&lt;`) in names and labels."""
    return html.escape(str(text), quote=False)


def token_heat_map(
    values: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    *,
    hover: Sequence[Sequence[str]],
    columns: Sequence[str | int],
    rows: Sequence[str | int],
    row_name: str = "Layer",
    colors: str = "RdBu_r",
    bar_title: str = "Probability",
) -> Any:
    """A heat map of probabilities with a token written in every cell.

    Arguments:
        values: (row, column), 0 to 1.
        texts: (row, column), what is written in a cell; plotly reads tags in it (`interp.plots.escaped`).
        hover: (row, column), what a cell says when it is pointed at.
        columns, rows: what stands along the axes.
        row_name: what a row is called when it is pointed at.
        colors: a plotly colour scale.
        bar_title: above the colour bar.

    Returns:
        A plotly trace.
    """
    return graph_objects().Heatmap(
        z=values,
        x=columns,
        y=rows,
        text=texts,
        texttemplate="%{text}",
        colorscale=colors,
        colorbar={"title": bar_title, "thickness": 15, "len": 0.9},
        zmin=0,
        zmax=1,
        hovertext=hover,
        hovertemplate=f"{row_name}: %{{y}}<br>%{{hovertext}}<br>Probability: %{{z}}<extra></extra>",
    )


def save_figure(figure: Any, path: str | Path, *, page_too: bool = False) -> None:
    """Write a figure: a page for `.html`, or else an image, which needs the package kaleido.

    Arguments:
        figure: a plotly figure.
        path: of the file.
        page_too: beside an image, write a page of the same name.
    """
    path = Path(path)
    is_page = path.suffix == ".html"
    if not is_page:
        figure.write_image(path, scale=3)
    if is_page or page_too:
        figure.write_html(path.with_suffix(".html"))

"""plotly, which is optional; what all figures share; and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["COLORS", "FONT", "graph_objects", "make_subplots", "save_figure", "with_alpha"]

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

"""The heat map of top tokens that several figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.display.plotly import graph_objects

__all__ = ["token_heat_map"]


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
        texts: (row, column), what is written in a cell; plotly reads tags in it (`interp.display.escaped`).
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

"""Contributions to logits as bars."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np

from interp.display.lens import finite_mean
from interp.display.plotly import COLORS, FONT, graph_objects
from interp.display.text import escaped
from interp.errors import InterpError
from interp.lenses.attribution import Attribution
from interp.lenses.axes import Coordinate

__all__ = ["attribution_figure"]


def attribution_figure(
    result: Attribution,
    *,
    groups: Sequence[str] | None = None,
    example: Coordinate | None = None,
    title: str | None = None,
) -> Any:
    """Bars of the contribution of each site, by group; see `Attribution.plot`."""
    go = graph_objects()
    if result.axes != ("example", "site"):
        raise InterpError(
            "plot: bars are of one position. Select it first, e.g. result.select(position='last').plot(); this result "
            f"has {', '.join(map(str, result.along('position')))}."
        )
    if groups is not None:
        result = result.select(group=list(groups))
    if example is not None:
        result = result.select(example=example)
    figure = go.Figure()
    sites = [str(site) for site in result.along("site")]
    mean, _ = finite_mean(np.asarray(result.contribution, dtype=np.float64))  # (site, group)
    for index, (name, color) in enumerate(zip(result.group_names, cycle(COLORS), strict=False)):
        figure.add_trace(go.Bar(x=sites, y=mean[:, index], name=escaped(name), marker_color=color))
    n = len(result.contribution)
    of = f"mean of {n} examples" if n > 1 else f"example {escaped(str(result.coordinates['example'][0]))}"
    figure.update_xaxes(title_text="site", tickangle=-45)
    figure.update_yaxes(title_text="contribution (logits)")
    figure.update_layout(
        title={"text": title or f"direct logit attribution: {of}", "font": {"size": 15}},
        barmode="group",
        template="plotly_white",
        font=FONT,
        showlegend=True,
        width=max(640, 16 * len(sites) * max(len(result.group_names), 1) + 200),
    )
    return figure

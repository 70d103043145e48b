"""Contributions to logits as bars; what a model wrote after a patch at each layer, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np

from interp.errors import InterpError
from interp.plots.lens import finite_mean
from interp.plots.style import COLORS, FONT, escaped, graph_objects
from interp.results import Attribution, Coordinate, GenerationResult
from interp.text import visible

__all__ = ["attribution_figure", "generation_figure"]

_STRIPES = ("#ffffff", "#f3f5f8")


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


def generation_figure(result: GenerationResult, examples: Sequence[int] = (0,), *, title: str | None = None) -> Any:
    """A table of texts, a row for each layer and a column for each example; see `GenerationResult.plot`."""
    for example in examples:
        if not 0 <= example < len(result.texts):
            raise InterpError(f"examples: expected 0 to {len(result.texts) - 1}, got {example}.")
    # Line breaks are shown by their sign; other spaces stay, for the text to be broken at.
    texts = [[escaped(visible(text).replace("␣", " ")) for text in result.texts[example]] for example in examples]
    stripes = [color for color, _ in zip(cycle(_STRIPES), result.layers, strict=False)]
    figure = graph_objects().Figure(
        graph_objects().Table(
            header={
                "values": ["layer", *(f"example {example}" for example in examples)],
                "align": "left",
                "fill_color": "#dfe5ee",
                "font": FONT,
            },
            cells={
                "values": [list(result.layers), *texts],
                "align": ["right", *["left"] * len(texts)],
                "fill_color": [stripes],
                "font": FONT,
                "height": 26,
            },
            columnwidth=[60, *[480] * len(texts)],
        )
    )
    figure.update_layout(
        title={"text": title or "text generated after a patch at each layer", "font": {"size": 15}}, font=FONT
    )
    return figure

"""Render the page of the report, and lay out the figures beside it.

Autoescape is on for every value, so that tokens and prompts, which are data, can never become markup.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from interp.plots import (
    COLORS,
    COMPACT,
    HALF,
    NAMED_COLORS,
    SMALL,
    WIDE,
    Curves,
    Figure,
    Frame,
    Group,
    HeatMap,
    Panel,
    Series,
    figure_of,
    number,
)  # fmt: skip
from pipeline.stages.evaluate.tables import LEAD_FLOOR
from pipeline.stages.report.source import Comparison, LensSection
from pipeline.stages.report.words import percent, rank

__all__ = ["Page", "figure_of_comparison", "figure_of_lens", "render"]

PAPER = 0.55  # size of a figure in a file: letters of 7 points on a width of 20 centimetres
COLUMNS = 3  # of small panels in a file, as on the page


@dataclass(frozen=True)
class Page:
    """What the page says beside its lenses.

    Arguments:
        title, lede: of the page.
        highlights: (name, value) of the few facts under the title.
        facts: (heading, rows of (name, value)).
        digests: (name, SHA-256).
        commands: (text, command) to run it again.
        config: the config as YAML.
        confidence: of the intervals, 0 to 1.
        interval: `normal` or `bootstrap`.
        entropy_unit: `bits` or `nats`.
        figure_format: `svg` or `png`.
        version: of Interpipe.
    """

    title: str
    lede: str
    highlights: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    digests: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]]
    config: str
    confidence: float
    interval: str
    entropy_unit: str
    figure_format: str
    version: str


@dataclass(frozen=True)
class SectionView:
    """A lens with its charts drawn; `content` is what the report says about it."""

    content: LensSection
    wide: Markup | None
    compact: Markup | None
    legend: bool
    small: Sequence[tuple[Curves, Markup]]
    bar: Sequence[tuple[Group | None, int, str]]
    layers: Sequence[int]
    columns: Sequence[tuple[str, Series]]
    heat_maps: Sequence[tuple[HeatMap, Markup]]
    own: Sequence[tuple[Panel, Markup]]
    example_curves: Sequence[Markup | None]


@dataclass(frozen=True)
class ComparisonView:
    """Lenses beside each other with their charts drawn; `rows` are (layer, one text a column)."""

    content: Comparison
    charts: Sequence[tuple[Curves, Markup]]
    columns: Sequence[str]
    rows: Sequence[tuple[int, Sequence[str]]]


def render(page: Page, sections: Sequence[LensSection], comparisons: Sequence[Comparison] = ()) -> str:
    """The page as HTML, the same text for the same content."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        function.__name__: function for function in (number, rank, percent, bounds, share, style_of)
    }
    template = environment.get_template("page.html.j2")
    return template.render(
        page=page,
        colors=NAMED_COLORS,
        floor=LEAD_FLOOR,
        views=[_view(section) for section in sections],
        comparisons=[_compared(comparison) for comparison in comparisons],
    )


def figure_of_lens(section: LensSection) -> Figure:
    """All panels of a lens in one figure, for a file."""
    rows: list[list[tuple[Panel, Frame]]] = [[(section.main, WIDE)]] if section.main else []
    small: list[tuple[Panel, Frame]] = [(heat, heat.frame(bar=True)) for heat in section.heat_maps]
    small += [(panel, SMALL) for panel in section.panels]
    small += section.own
    rows += [small[start : start + COLUMNS] for start in range(0, len(small), COLUMNS)]
    return figure_of(rows, scale=PAPER, title=section.title, note=section.n_text)


def figure_of_comparison(comparison: Comparison) -> Figure:
    """The panels of a comparison in one figure, for a file."""
    title = f"What the model says after {comparison.position}"
    return figure_of([[(panel, HALF) for panel in comparison.panels]], scale=PAPER, title=title, note=comparison.n_text)


def _chart(panel: Panel, frame: Frame, kind: str, tips: bool = True) -> Markup:
    return Markup(figure_of([[(panel, frame)]]).markup(kind, tips=tips))


def _compared(comparison: Comparison) -> ComparisonView:
    curves = [(panel, series) for panel in comparison.panels for series in panel.series]
    layers = sorted({layer for _, series in curves for layer in series.x})
    at = [dict(zip(series.x, series.mean, strict=True)) for _, series in curves]
    return ComparisonView(
        content=comparison,
        charts=[(panel, _chart(panel, HALF, "strip")) for panel in comparison.panels],
        columns=[f"{panel.title}, {series.group.label}" for panel, series in curves if series.group],
        rows=[(layer, [number(means.get(layer)) for means in at]) for layer in layers],
    )


def _view(section: LensSection) -> SectionView:
    main = section.main
    panels = [*([main] if main else []), *section.panels]
    columns = [
        (f"{panel.heading}, {series.group.label}" if series.group else panel.heading, series)
        for panel in panels
        for series in panel.series
    ]
    layers = panels[0].series[0].x if panels else []
    return SectionView(
        content=section,
        wide=_chart(main, WIDE, "wide") if main else None,
        compact=_chart(main, COMPACT, "compact", tips=False) if main else None,  # nothing hovers on a phone
        legend=main is not None and not main.names(WIDE),
        small=[(panel, _chart(panel, SMALL, "strip")) for panel in section.panels],
        bar=_bar(section, layers) if main and main.metric == "probability" else [],
        layers=layers,
        columns=columns,
        heat_maps=[(heat, _chart(heat, heat.frame(), "grid-map")) for heat in section.heat_maps],
        own=[(panel, _chart(panel, frame, "own")) for panel, frame in section.own],
        example_curves=[
            None if example.curves is None else _chart(example.curves, SMALL, "strip") for example in section.examples
        ],
    )


def style_of(group: Group | None) -> str:
    """The classes of the style sheet for a group's colour and dash."""
    return "plain" if group is None else f"c{group.color % len(COLORS)} d{group.color // len(COLORS) % 3}"


def _bar(section: LensSection, layers: Sequence[int]) -> list[tuple[Group | None, int, str]]:
    """(leader or None, number of measured layers, these layers in words), from the first layer to the last."""
    leaders = [next((f for f in section.findings if f.first_layer <= layer <= f.last_layer), None) for layer in layers]
    bar: list[tuple[Group | None, int, str]] = []
    for finding, stretch in itertools.groupby(zip(leaders, layers, strict=True), key=lambda pair: pair[0]):
        own = [layer for _, layer in stretch]
        text = str(own[0]) if len(own) == 1 else f"{own[0]}–{own[-1]}"
        bar.append((finding.group if finding else None, len(own), text))
    return bar


def share(value: float) -> float:
    """A probability as a share of a colour: 0 to 1 whatever comes."""
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0


def bounds(series: Series, index: int) -> str:
    """The interval of a series at one layer, or nothing."""
    low, high = series.low[index], series.high[index]
    return f"{number(low)} to {number(high)}" if math.isfinite(low) and math.isfinite(high) else ""

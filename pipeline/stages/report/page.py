"""The page of the report: what its template is given, and rendering it.

Autoescape is on for every value, so that tokens and prompts, which are data, can never become markup.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.stages.evaluate.statistics import LEAD_FLOOR
from pipeline.stages.report.curve_chart import COMPACT, HALF, SMALL, WIDE, Chart, draw, style_of
from pipeline.stages.report.heat_chart import HeatChart, draw_heat_map
from pipeline.stages.report.own_figures import Drawn
from pipeline.stages.report.sections import Comparison, LensSection
from pipeline.stages.report.sections.parts import Group, HeatMap, Panel, Series
from pipeline.stages.report.words import number, percent, rank

__all__ = ["Page", "render"]


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
        own_figures: that plugins have drawn.
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
    own_figures: Sequence[Drawn] = ()


@dataclass(frozen=True)
class SectionView:
    """A lens with its charts laid out; `content` is what the report says about it."""

    content: LensSection
    wide: Chart | None
    compact: Chart | None
    small: Sequence[tuple[Panel, Chart, str]]
    alt: str
    bar: Sequence[tuple[Group | None, int, str]]
    layers: Sequence[int]
    columns: Sequence[tuple[str, Series]]
    heat_maps: Sequence[tuple[HeatMap, HeatChart, str]]


@dataclass(frozen=True)
class ComparisonView:
    """Lenses beside each other with their charts laid out; `rows` are (layer, one text a column)."""

    content: Comparison
    charts: Sequence[tuple[Panel, Chart, str]]
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
        floor=LEAD_FLOOR,
        views=[_view(section) for section in sections],
        comparisons=[_compared(comparison) for comparison in comparisons],
    )


def _compared(comparison: Comparison) -> ComparisonView:
    curves = [(panel, series) for panel in comparison.panels for series in panel.series]
    layers = sorted({layer for _, series in curves for layer in series.layers})
    at = [dict(zip(series.layers, series.mean, strict=True)) for _, series in curves]
    return ComparisonView(
        content=comparison,
        charts=[(panel, draw(panel, HALF), _alt(panel)) for panel in comparison.panels],
        columns=[f"{panel.title}, {series.group.label}" for panel, series in curves if series.group],
        rows=[(layer, [number(means.get(layer)) for means in at]) for layer in layers],
    )


def _view(section: LensSection) -> SectionView:
    main = section.main
    panels = [*([main] if main else []), *section.panels]
    columns = [
        (f"{panel.title}{f' ({panel.unit})' if panel.unit else ''}{f', {s.group.label}' if s.group else ''}", s)
        for panel in panels
        if panel.metric != "top1_accuracy"
        for s in panel.series
    ]
    layers = panels[0].series[0].layers if panels else []
    return SectionView(
        content=section,
        wide=draw(main, WIDE) if main else None,
        compact=draw(main, COMPACT) if main else None,
        small=[(panel, draw(panel, SMALL), _alt(panel)) for panel in section.panels],
        alt=_alt(main) if main else "",
        bar=_bar(section, layers) if main and main.metric == "probability" else [],
        layers=layers,
        columns=columns,
        heat_maps=[(heat, draw_heat_map(heat), _heat_alt(heat)) for heat in section.heat_maps],
    )


def _heat_alt(heat: HeatMap) -> str:
    """A heat map in words, for those who do not see it."""
    cells = [
        (mean, source, target)
        for source, row in zip(heat.sources, heat.mean, strict=True)
        for target, mean in zip(heat.targets, row, strict=True)
        if math.isfinite(mean)
    ]
    best, source, target = max(cells)
    unit = f" in {heat.unit}" if heat.unit else ""
    return (
        f"{heat.title}{unit} by source and target layer: highest {best:.2g}, source layer {source} into layer {target}."
    )


def _bar(section: LensSection, layers: Sequence[int]) -> list[tuple[Group | None, int, str]]:
    """(leader or None, number of measured layers, these layers in words), from the first layer to the last."""
    leaders = [next((f for f in section.findings if f.first_layer <= layer <= f.last_layer), None) for layer in layers]
    bar: list[tuple[Group | None, int, str]] = []
    for finding, stretch in itertools.groupby(zip(leaders, layers, strict=True), key=lambda pair: pair[0]):
        own = [layer for _, layer in stretch]
        text = str(own[0]) if len(own) == 1 else f"{own[0]}–{own[-1]}"
        bar.append((finding.group if finding else None, len(own), text))
    return bar


def _alt(panel: Panel) -> str:
    """A chart in words, for those who do not see it."""
    layers = sorted({layer for series in panel.series for layer in series.layers})
    parts = []
    for series in panel.series:
        known = [(mean, layer) for mean, layer in zip(series.mean, series.layers, strict=True) if math.isfinite(mean)]
        if known:
            best, at = max(known, key=lambda point: (point[0], -point[1]))
            name = f"{series.group.label}: " if series.group else ""
            parts.append(f"{name}{known[0][0]:.2g} first, highest {best:.2g} at layer {at}, {known[-1][0]:.2g} last")
    unit = f" in {panel.unit}" if panel.unit else ""
    return f"{panel.title}{unit} over layers {layers[0]} to {layers[-1]}. {'; '.join(parts)}."


def share(value: float) -> float:
    """A probability as a share of a colour: 0 to 1 whatever comes."""
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0


def bounds(series: Series, index: int) -> str:
    """The interval of a series at one layer, or nothing."""
    low, high = series.low[index], series.high[index]
    return f"{number(low)} to {number(high)}" if math.isfinite(low) and math.isfinite(high) else ""


def readable_value(value: Any) -> str:
    """A config value for people."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {readable_value(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(readable_value(item) for item in value) or "none"
    return str(value)

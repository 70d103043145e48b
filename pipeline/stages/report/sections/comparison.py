"""Lenses beside each other: one chart a metric, one curve a lens."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.stages.report.sections.parts import Comparison, Group, Panel
from pipeline.stages.report.sections.source import SINGLE_PANELS, Source, sample_text
from pipeline.stages.report.words import spelled_position

__all__ = ["comparisons"]

# What means the same in every lens: both speak of the model's own prediction (Ghandeharioun et al. 2024, section 4.1).
METRICS = ("precision_at_1", "surprisal_nats")


def comparisons(sources: Sequence[Source]) -> list[Comparison]:
    """The lenses of a run that try to say the same: the model's own prediction at one token of the examples.

    Arguments:
        sources: the lenses, in the run's order.

    Returns:
        One for each kind of examples and source position that at least two lenses with curves share.
    """
    alike: dict[tuple[str, str], list[Source]] = {}
    for source in sources:
        reads = source.config.reads()
        if reads is not None and any(source.curve(metric) for metric in METRICS):
            alike.setdefault((source.unit, reads.position), []).append(source)
    return [
        _comparison(unit, position, own) for (unit, position), own in alike.items() if len(own) > 1
    ]  # fmt: skip


def _comparison(unit: str, position: str, sources: Sequence[Source]) -> Comparison:
    lenses = [Group(source.name, source.title, color) for color, source in enumerate(sources)]
    rows = [row for source in sources for metric in METRICS for row in source.curve(metric)]
    panels = []
    for metric in METRICS:
        title, measured, note = SINGLE_PANELS[metric]
        series = [
            source.series(points, lens)
            for source, lens in zip(sources, lenses, strict=True)
            if (points := source.curve(metric))
        ]
        panels.append(Panel(metric, title, measured, note, 1.0 if metric == "precision_at_1" else None, series))
    return Comparison(
        lenses=lenses,
        position=spelled_position(position),
        n_text=sample_text(rows, unit),
        panels=[panel for panel in panels if panel.series],
    )

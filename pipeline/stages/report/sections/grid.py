"""The section of a lens over source and target layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.stages.evaluate.statistics import LEAD_FLOOR
from pipeline.stages.evaluate.tables import GridRow
from pipeline.stages.report.sections.examples import grid_examples
from pipeline.stages.report.sections.parts import Group, HeatMap, LensSection, Table
from pipeline.stages.report.sections.readings import BASELINES, baseline_means
from pipeline.stages.report.sections.source import SINGLE_PANELS, Source, metric_note, or_nan, sample_text
from pipeline.stages.report.words import baseline_label, number, rank

__all__ = ["best_cell", "cells_of", "grid_section", "heat_map"]

SHARES = ("probability", "generation_accuracy", "top1_accuracy", "precision_at_1")  # between 0 and 1, all on one scale
SINGLE = ("precision_at_1", "surprisal_nats", "entropy_bits", "entropy_nats")


def grid_section(source: Source) -> LensSection:
    """All that the report says about such a lens."""
    maps = [
        found
        for group in source.groups
        if (found := heat_map(source, "probability", group.label, "", "mean probability", group))
    ]
    for metric in SINGLE:
        title, unit, note = SINGLE_PANELS[metric]
        found = heat_map(source, metric, title, unit, metric_note(source, metric, note), None)
        maps += [found] if found else []
    best = {
        group.key: cell for group in source.groups if (cell := best_cell(cells_of(source, "probability", group.key)))
    }
    sources, targets = source.store.attributes["source_layers"], source.store.attributes["target_layers"]
    counted = [row for row in source.grids if row.metric == "probability" and row.n]
    return LensSection(
        name=source.name,
        title=source.title,
        method=source.method,
        paper=source.paper,
        unit=source.unit,
        num_examples=source.count,
        n_text=sample_text(counted or [row for row in source.grids if not row.group], source.unit),
        layers_text=f"{len(sources)} × {len(targets)}",
        groups=source.groups,
        heat_maps=maps,
        remarks=[
            (group, f"up to {number(cell.mean)}, from layer {cell.source_layer} into layer {cell.target_layer}")
            for group in source.groups
            if (cell := best.get(group.key)) and or_nan(cell.mean) >= LEAD_FLOOR
        ],
        summary=_table(source, best) if source.groups else None,
        examples=grid_examples(source),
        examples_title="Top token by source and target layer",
    )


def cells_of(source: Source, metric: str, group: str = "") -> list[GridRow]:
    """The cells of one metric, source layer by source layer."""
    return [row for row in source.grids if (row.metric, row.group) == (metric, group)]


def best_cell(cells: Sequence[GridRow]) -> GridRow | None:
    """The cell with the highest mean, the earliest layers in a tie."""
    known = [row for row in cells if row.mean is not None]
    return max(known, key=lambda row: (or_nan(row.mean), -row.source_layer, -row.target_layer), default=None)


def heat_map(source: Source, metric: str, title: str, unit: str, note: str, group: Group | None) -> HeatMap | None:
    """One metric's cells as a map; None where nothing is known."""
    rows = cells_of(source, metric, group.key if group else "")
    if not any(row.n for row in rows):
        return None
    sources, targets = source.store.attributes["source_layers"], source.store.attributes["target_layers"]
    width = len(targets)
    lines = [rows[start : start + width] for start in range(0, len(sources) * width, width)]
    highest = max(or_nan(row.mean) for row in rows if row.mean is not None)
    return HeatMap(
        metric=metric,
        title=title,
        unit=unit,
        note=note,
        group=group,
        sources=sources,
        targets=targets,
        mean=[[or_nan(row.mean) for row in line] for line in lines],
        low=[[or_nan(getattr(row, f"{source.interval}_low")) for row in line] for line in lines],
        high=[[or_nan(getattr(row, f"{source.interval}_high")) for row in line] for line in lines],
        n=[[row.n for row in line] for line in lines],
        top=_top(source, metric, highest),
    )


def _top(source: Source, metric: str, highest: float) -> float:
    """The value of the strongest colour: the same for all groups, so that their maps can be compared."""
    if metric in ("probability", "generation_accuracy"):
        highest = max(or_nan(row.mean) for row in source.grids if row.metric == metric and row.mean is not None)
    if metric in SHARES:
        return next((top for top in (0.1, 0.25, 0.5) if highest <= top), 1.0)
    return highest if math.isfinite(highest) and highest > 0 else 1.0


def _table(source: Source, best: dict[str, GridRow]) -> Table:
    """The best cell of each group."""
    baselines = {group.key: baseline_means(source, group) for group in source.groups}
    kinds = [kind for kind in BASELINES if any(kind in means for means in baselines.values())]
    rows = []
    for group in source.groups:
        cell = best.get(group.key)
        there = {
            row.metric: row.mean
            for row in source.grids
            if cell and row.group == group.key
            and (row.source_layer, row.target_layer) == (cell.source_layer, cell.target_layer)
        }  # fmt: skip
        numbers = [
            str(max((row.n for row in cells_of(source, "probability", group.key)), default=0)),
            number(cell.mean if cell else None),
            str(cell.source_layer) if cell else "—",
            str(cell.target_layer) if cell else "—",
            number(there.get("top1_accuracy")),
            rank(there.get("rank")),
            *(number(baselines[group.key].get(kind)) for kind in kinds),
        ]
        rows.append((group, numbers))
    return Table(
        title=f"Highest mean probability of each group for the lens {source.title}",
        head="Answer",
        columns=[
            "n", "peak", "source layer", "target layer", "top-1 accuracy there", "mean rank there",
            *(baseline_label(source.config, kind) for kind in kinds),
        ],
        rows=rows,
    )  # fmt: skip

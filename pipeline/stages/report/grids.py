"""Write the sections of lenses over source and target layers: probabilities read, text generated."""

from __future__ import annotations

import math
from collections.abc import Sequence

from interp.plots import Group, HeatMap, number, share_top
from pipeline.metrics import METRICS, Metric
from pipeline.stages.evaluate.tables import LEAD_FLOOR, GridRow
from pipeline.stages.report.shown_examples import grid_examples, text_grid_examples
from pipeline.stages.report.source import BASELINES, LensSection, Source, Table, drawn, or_nan
from pipeline.stages.report.words import baseline_label, percent, rank

__all__ = ["generation_grid_section", "grid_section"]

IN_TEXTS = "generation_accuracy"


def grid_section(source: Source) -> LensSection:
    """All that the report says about a lens that reads probabilities."""
    best = _best_cells(source, "probability")
    counted = [row for row in source.grids if row.metric == "probability" and row.n]
    return source.section(
        counted or [row for row in source.grids if not row.group],
        _layers_text(source),
        heat_maps=_heat_maps(source, "probability"),
        remarks=[
            (group, f"up to {number(cell.mean)}, from layer {cell.source_layer} into layer {cell.target_layer}")
            for group in source.groups
            if (cell := best.get(group.key)) and or_nan(cell.mean) >= LEAD_FLOOR
        ],
        summary=_table(source, best) if source.groups else None,
        examples=grid_examples(source),
        examples_title="Top token by source and target layer",
    )


def generation_grid_section(source: Source) -> LensSection:
    """All that the report says about a lens that generates text."""
    best = _best_cells(source, IN_TEXTS)
    rows = []
    for group in source.groups:
        cell = best.get(group.key)
        place = [str(cell.source_layer), str(cell.target_layer)] if cell else ["—", "—"]
        n = max((row.n for row in _cells_of(source, IN_TEXTS, group.key)), default=0)
        rows.append((group, [str(n), number(cell.mean if cell else None), *place]))
    table = Table(
        title=f"Highest share of texts that hold each answer for the lens {source.title}",
        head="Answer",
        columns=["n", "peak", "source layer", "target layer"],
        rows=rows,
    )
    return source.section(
        [row for row in source.grids if row.metric == IN_TEXTS and row.n],
        _layers_text(source),
        heat_maps=_heat_maps(source, IN_TEXTS),
        remarks=[
            (group, f"in up to {percent(or_nan(cell.mean))} of texts, from layer {cell.source_layer} into layer "
                    f"{cell.target_layer}")
            for group in source.groups
            if (cell := best.get(group.key)) and cell.mean
        ],
        summary=table if rows else None,
        examples=text_grid_examples(source),
        examples_title="Generated text by source and target layer",
    )  # fmt: skip


def _layers_text(source: Source) -> str:
    return f"{len(source.store.attributes['source_layers'])} × {len(source.store.attributes['target_layers'])}"


def _heat_maps(source: Source, main: str) -> list[HeatMap]:
    """A map of the main metric for each group, and one of every metric that is about no group."""
    maps = [_heat_map(source, METRICS[main], group) for group in source.groups]
    maps += [_heat_map(source, metric, None) for metric in drawn(of_groups=False)]
    return [heat for heat in maps if heat is not None]


def _cells_of(source: Source, metric: str, group: str = "") -> list[GridRow]:
    """The cells of one metric, source layer by source layer."""
    return [row for row in source.grids if (row.metric, row.group) == (metric, group)]


def _best_cell(cells: Sequence[GridRow]) -> GridRow | None:
    """The cell with the highest mean, the earliest layers in a tie."""
    known = [row for row in cells if row.mean is not None]
    return max(known, key=lambda row: (or_nan(row.mean), -row.source_layer, -row.target_layer), default=None)


def _best_cells(source: Source, metric: str) -> dict[str, GridRow]:
    """The best cell of each group that has one."""
    cells = {group.key: _best_cell(_cells_of(source, metric, group.key)) for group in source.groups}
    return {key: cell for key, cell in cells.items() if cell is not None}


def _heat_map(source: Source, metric: Metric, group: Group | None) -> HeatMap | None:
    """One metric's cells as a map; None where nothing is known."""
    rows = _cells_of(source, metric.name, group.key if group else "")
    if not any(row.n for row in rows):
        return None
    sources, targets = source.store.attributes["source_layers"], source.store.attributes["target_layers"]
    width = len(targets)
    lines = [rows[start : start + width] for start in range(0, len(sources) * width, width)]
    note = source.note(metric)
    return HeatMap(
        metric=metric.name,
        title=group.label if group else metric.title,
        unit=metric.unit,
        note=f"{metric.title.lower()}, {note}" if group else note,
        group=group,
        rows=sources,
        columns=targets,
        mean=[[or_nan(row.mean) for row in line] for line in lines],
        low=[[or_nan(getattr(row, f"{source.interval}_low")) for row in line] for line in lines],
        high=[[or_nan(getattr(row, f"{source.interval}_high")) for row in line] for line in lines],
        n=[[row.n for row in line] for line in lines],
        top=_top(source, metric, rows),
    )


def _top(source: Source, metric: Metric, rows: Sequence[GridRow]) -> float:
    """The value of the strongest colour: the same for all groups, so that their maps can be compared."""
    alike = [row for row in source.grids if row.metric == metric.name] if metric.of_groups else rows
    highest = max(or_nan(row.mean) for row in alike if row.mean is not None)
    if metric.is_share:
        return share_top(highest)
    return highest if math.isfinite(highest) and highest > 0 else 1.0


def _table(source: Source, best: dict[str, GridRow]) -> Table:
    """The best cell of each group."""
    baselines = {group.key: source.baseline_means(group) for group in source.groups}
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
            str(max((row.n for row in _cells_of(source, "probability", group.key)), default=0)),
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

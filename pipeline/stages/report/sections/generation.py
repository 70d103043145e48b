"""The sections of a lens that generates text: at each layer, or from each source layer in each target layer."""

from __future__ import annotations

from pipeline.stages.evaluate.tables import CurveRow
from pipeline.stages.report.sections.examples import text_examples, text_grid_examples
from pipeline.stages.report.sections.grid import best_cell, cells_of, heat_map
from pipeline.stages.report.sections.parts import LensSection, Panel, Table
from pipeline.stages.report.sections.source import SINGLE_PANELS, Source, or_nan, sample_text, single_panels
from pipeline.stages.report.words import number, percent

__all__ = ["generation_grid_section", "generation_section"]

METRIC = "generation_accuracy"


def generation_section(source: Source) -> LensSection:
    """All that the report says about such a lens."""
    curves = {group.key: source.curve(METRIC, group.key) for group in source.groups}
    drawn = [group for group in source.groups if any(row.n for row in curves[group.key])]
    main = Panel(
        metric=METRIC,
        title="Answers in the text",
        unit="",
        note="share of generated texts that hold one of the group’s words, spaces removed and case folded",
        top=1.0,
        series=[source.series(curves[group.key], group) for group in drawn],
        caption="Share of examples whose generated text holds the answer, by layer",
    )
    best = {group.key: _best(curves[group.key]) for group in drawn}
    counted = [row for group in drawn for row in curves[group.key]]
    rows = []
    for group in drawn:
        points, peak = curves[group.key], best[group.key]
        at = str(peak.layer) if peak and peak.mean else "—"  # an answer that no text holds peaks nowhere
        numbers = [number(points[0].mean), number(peak.mean if peak else None), at, number(points[-1].mean)]
        rows.append((group, [str(max(row.n for row in points)), *numbers]))
    return LensSection(
        name=source.name,
        title=source.title,
        method=source.method,
        paper=source.paper,
        unit=source.unit,
        num_examples=source.count,
        n_text=sample_text(counted, source.unit) if counted else f"n = {source.count} {source.unit}",
        layers_text=str(len(source.store.attributes["layers"])),
        groups=source.groups,
        main=main if drawn else None,
        panels=single_panels(source),
        remarks=[
            (group, f"in up to {percent(or_nan(peak.mean))} of texts, at layer {peak.layer}")
            for group in drawn
            if (peak := best[group.key]) and peak.mean
        ],
        summary=Table(
            title=f"Share of texts that hold each answer for the lens {source.title}",
            head="Answer",
            columns=["n", "first layer", "peak", "at layer", "last layer"],
            rows=rows,
        )
        if rows
        else None,
        examples=text_examples(source),
        examples_title="Generated text by layer",
    )


def generation_grid_section(source: Source) -> LensSection:
    """All that the report says about one over source and target layers."""
    note = "share of texts that hold one of the group’s words"
    maps = [
        found for group in source.groups if (found := heat_map(source, METRIC, group.label, "", note, group))
    ]  # fmt: skip
    title, unit, counted = SINGLE_PANELS["generated_tokens"]
    tokens = heat_map(source, "generated_tokens", title, unit, counted, None)
    best = {group.key: cell for group in source.groups if (cell := best_cell(cells_of(source, METRIC, group.key)))}
    sources, targets = source.store.attributes["source_layers"], source.store.attributes["target_layers"]
    measured = [row for row in source.grids if row.metric == METRIC and row.n]
    rows = []
    for group in source.groups:
        cell = best.get(group.key)
        place = [str(cell.source_layer), str(cell.target_layer)] if cell else ["—", "—"]
        n = max((row.n for row in cells_of(source, METRIC, group.key)), default=0)
        rows.append((group, [str(n), number(cell.mean if cell else None), *place]))
    return LensSection(
        name=source.name,
        title=source.title,
        method=source.method,
        paper=source.paper,
        unit=source.unit,
        num_examples=source.count,
        n_text=sample_text(measured, source.unit) if measured else f"n = {source.count} {source.unit}",
        layers_text=f"{len(sources)} × {len(targets)}",
        groups=source.groups,
        heat_maps=[*maps, *([tokens] if tokens else [])],
        remarks=[
            (group, f"in up to {percent(or_nan(cell.mean))} of texts, from layer {cell.source_layer} into layer "
                    f"{cell.target_layer}")
            for group in source.groups
            if (cell := best.get(group.key)) and cell.mean
        ],
        summary=Table(
            title=f"Highest share of texts that hold each answer for the lens {source.title}",
            head="Answer",
            columns=["n", "peak", "source layer", "target layer"],
            rows=rows,
        )
        if rows
        else None,
        examples=text_grid_examples(source),
        examples_title="Generated text by source and target layer",
    )  # fmt: skip


def _best(rows: list[CurveRow]) -> CurveRow | None:
    """The layer with the highest mean, the first one in a tie."""
    known = [row for row in rows if row.mean is not None]
    return max(known, key=lambda row: (or_nan(row.mean), -row.layer), default=None)

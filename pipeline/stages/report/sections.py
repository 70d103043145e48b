"""Write the section of each lens: curves by layer (probabilities read, tokens knocked out, text generated) and maps
over source and target layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interp.plots import Baseline, Curves, Group, HeatMap, Series, number, share_top
from pipeline.metrics import METRICS, Metric
from pipeline.stages.evaluate.tables import LEAD_FLOOR, CurveRow, GridRow, leads, means_by_group
from pipeline.stages.report.shown_examples import (
    block_examples,
    grid_examples,
    text_examples,
    text_grid_examples,
    token_examples,
)
from pipeline.stages.report.source import BASELINES, Finding, LensSection, Source, Table, drawn, or_nan
from pipeline.stages.report.words import baseline_label, percent, rank, spelled_block

__all__ = ["generation_grid_section", "generation_section", "grid_section", "knockout_section", "readings_section"]


LEFT = "relative_probability"
IN_TEXTS = "generation_accuracy"
COMMON = 0.1  # probability without a block, above which the axis is that of the other lenses


@dataclass(frozen=True)
class _Summary:
    """Numbers of one group; None where unknown. `accuracy` and `rank` are at the layer of the peak."""

    group: Group
    n: int
    first: float | None
    peak: float | None
    peak_layer: int | None
    last: float | None
    accuracy: float | None
    rank: float | None
    baselines: Mapping[str, float]


def readings_section(source: Source) -> LensSection:
    """All that the report says about a lens that reads the groups' probabilities layer by layer."""
    groups = source.groups
    layers: list[int] = source.store.attributes["layers"]
    summary = _summary(source, groups)
    measured = [row.group for row in summary if row.n]
    counted = [row for row in source.curves if row.metric == "probability" and row.n]
    main = source.panel(
        METRICS["probability"],
        _by_group(source, "probability", measured),
        top=source.top,
        baselines=_baselines(source, summary),
        caption="Mean probability of each answer by layer",
    )
    return source.section(
        counted or [row for row in source.curves if not row.group],
        str(len(layers)),
        findings=_findings(source, {group.key: group for group in groups}, layers),
        main=main if measured else None,
        panels=[*_group_panels(source, "probability", measured), *source.single_panels()],
        summary=_table(source, summary) if summary else None,
        examples=token_examples(source),
    )


def _by_group(source: Source, metric: str, groups: Sequence[Group]) -> list[Series]:
    return [source.series(source.curve(metric, group.key), group) for group in groups]


def _group_panels(source: Source, main: str, groups: Sequence[Group]) -> list[Curves]:
    """The metrics of groups beside that of the main chart."""
    return [
        source.panel(metric, _by_group(source, metric.name, groups))
        for metric in drawn(of_groups=True)
        if metric.name != main and any(source.curve(metric.name, group.key) for group in groups)
    ]


def _summary(source: Source, groups: Sequence[Group]) -> list[_Summary]:
    table = []
    for group in groups:
        points = source.curve("probability", group.key)
        known = [row for row in points if row.mean is not None]
        peak = max(known, key=lambda row: (or_nan(row.mean), -row.layer), default=None)
        index = points.index(peak) if peak else 0
        table.append(
            _Summary(
                group=group,
                n=max(row.n for row in points),
                first=points[0].mean,
                peak=peak.mean if peak else None,
                peak_layer=peak.layer if peak else None,
                last=points[-1].mean,
                accuracy=source.curve("top1_accuracy", group.key)[index].mean,
                rank=source.curve("rank", group.key)[index].mean,
                baselines=source.baseline_means(group),
            )
        )
    return table


def _table(source: Source, summary: Sequence[_Summary]) -> Table:
    """The numbers as the page shows them."""
    kinds = [kind for kind in BASELINES if any(kind in row.baselines for row in summary)]
    return Table(
        title=f"Mean probability of each group for the lens {source.title}",
        head="Answer",
        columns=[
            "n", "first layer", "peak", "at layer", "top-1 accuracy there", "mean rank there", "last layer",
            *(baseline_label(source.config, kind) for kind in kinds),
        ],
        rows=[
            (row.group, [
                str(row.n), number(row.first), number(row.peak), "—" if row.peak_layer is None else str(row.peak_layer),
                number(row.accuracy), rank(row.rank), number(row.last),
                *(number(row.baselines.get(kind)) for kind in kinds),
            ])
            for row in summary
        ],
    )  # fmt: skip


def _baselines(source: Source, summary: Sequence[_Summary]) -> list[Baseline]:
    """For each unpatched prompt the line of its own answer, that is the group which it makes most probable."""
    lines = []
    for kind in BASELINES:
        best = max((row for row in summary if kind in row.baselines), key=lambda row: row.baselines[kind], default=None)
        if best is not None:
            lines.append(Baseline(baseline_label(source.config, kind), best.group, best.baselines[kind]))
    return lines


def _findings(source: Source, groups: Mapping[str, Group], layers: Sequence[int]) -> list[Finding]:
    means = means_by_group(source.curves)
    return [
        Finding(
            group=groups[lead.group],
            first_layer=lead.first_layer,
            last_layer=lead.last_layer,
            taken_at=lead.taken_at,
            highest=max(
                mean
                for mean, layer in zip(means[lead.group], layers, strict=True)
                if lead.first_layer <= layer <= lead.last_layer
            ),
        )
        for lead in leads(means, layers)
    ]


def knockout_section(source: Source) -> LensSection:
    """All that the report says about an attention knock-out: what the answer loses without each block, by window."""
    keys: list[str] = source.store.attributes["blocks"]
    blocks = [Group(key, f"without {spelled_block(key)}", color) for color, key in enumerate(keys)]
    measured = [group for group in source.groups if any(row.n for row in _left(source, group))]
    where = "around" if source.config.centred else "from"
    first = measured[0] if measured else None
    singles = [
        source.panel(metric, _by_block(source, metric.name, "", blocks))
        for metric in drawn(of_groups=False)
        if any(source.curve(metric.name, "", block.key) for block in blocks)
    ]
    main = first and source.panel(
        METRICS[LEFT],
        _by_block(source, LEFT, first.key, blocks),
        of=first,
        baselines=[Baseline("nothing blocked", None, 1.0)],
        caption=f"Probability of {first.label} with tokens blocked, divided by that without; mean over examples",
    )
    return source.section(
        _left(source, first) if first else [],
        str(len(source.store.attributes["layers"])),
        main=main,
        panels=[*_block_panels(source, measured, blocks), *singles],
        remarks=[
            (block, f"leaves {percent(or_nan(worst.mean))} of {first.label}, {where} layer {worst.layer}")
            for block in blocks
            if first and (worst := _lowest(source.curve(LEFT, first.key, block.key)))
        ],
        summary=_knockout_table(source, first, blocks) if first else None,
        examples=block_examples(source),
        examples_title="Top token by window and blocked tokens",
    )


def _left(source: Source, group: Group) -> list[CurveRow]:
    return [row for row in source.curves if (row.metric, row.group) == (LEFT, group.key)]


def _block_panels(source: Source, groups: Sequence[Group], blocks: Sequence[Group]) -> list[Curves]:
    """Each metric of each group but the main chart's: of a rare token, a share of its probability says little."""
    panels = []
    for metric in drawn(of_groups=True):
        for group in groups:
            if metric.name == LEFT or not any(source.curve(metric.name, group.key, block.key) for block in blocks):
                continue
            own = source.baseline_means(group).get("source") if metric.name == "probability" else None
            rare = own is not None and own <= COMMON
            panels.append(
                source.panel(
                    metric,
                    _by_block(source, metric.name, group.key, blocks),
                    of=group,
                    top=source.top if own is not None and not rare else None,
                    baselines=[] if own is None else [Baseline("nothing blocked", None, own)],
                )
            )
    return panels


def _by_block(source: Source, metric: str, group: str, blocks: Sequence[Group]) -> list[Series]:
    return [source.series(source.curve(metric, group, block.key), block) for block in blocks]


def _lowest(rows: Sequence[CurveRow]) -> CurveRow | None:
    """The window that leaves least, the first one in a tie."""
    known = [row for row in rows if row.mean is not None]
    return min(known, key=lambda row: (or_nan(row.mean), row.layer), default=None)


def _knockout_table(source: Source, group: Group, blocks: Sequence[Group]) -> Table:
    rows = []
    for block in blocks:
        points, worst = source.curve(LEFT, group.key, block.key), _lowest(source.curve(LEFT, group.key, block.key))
        absolute = source.curve("probability", group.key, block.key)
        accuracy = source.curve("top1_accuracy", group.key, block.key)
        at = points.index(worst) if worst else 0
        rows.append(
            (block, [
                str(max(row.n for row in points)), number(points[0].mean), number(worst.mean if worst else None),
                "—" if worst is None else str(worst.layer), number(absolute[at].mean), number(accuracy[at].mean),
                number(points[-1].mean),
            ])
        )  # fmt: skip
    own = source.baseline_means(group).get("source")
    return Table(
        title=f"{group.label}: probability left without each block, relative to the unblocked run ({number(own)})",
        head="Blocked",
        columns=[
            "n",
            "first window",
            "least",
            "from layer",
            "probability there",
            "top-1 accuracy there",
            "last window",
        ],
        rows=rows,
    )


def generation_section(source: Source) -> LensSection:
    """All that the report says about a lens that generates text at each layer."""
    found = {group.key: source.curve(IN_TEXTS, group.key) for group in source.groups}
    measured = [group for group in source.groups if any(row.n for row in found[group.key])]
    main = source.panel(
        METRICS[IN_TEXTS],
        _by_group(source, IN_TEXTS, measured),
        caption="Share of examples whose generated text holds the answer, by layer",
    )
    best = {group.key: _best(found[group.key]) for group in measured}
    rows = []
    for group in measured:
        points, peak = found[group.key], best[group.key]
        at = str(peak.layer) if peak and peak.mean else "—"  # an answer that no text holds peaks nowhere
        numbers = [number(points[0].mean), number(peak.mean if peak else None), at, number(points[-1].mean)]
        rows.append((group, [str(max(row.n for row in points)), *numbers]))
    table = Table(
        title=f"Share of texts that hold each answer for the lens {source.title}",
        head="Answer",
        columns=["n", "first layer", "peak", "at layer", "last layer"],
        rows=rows,
    )
    return source.section(
        [row for group in measured for row in found[group.key]],
        str(len(source.store.attributes["layers"])),
        main=main if measured else None,
        panels=[*_group_panels(source, IN_TEXTS, measured), *source.single_panels()],
        remarks=[
            (group, f"in up to {percent(or_nan(peak.mean))} of texts, at layer {peak.layer}")
            for group in measured
            if (peak := best[group.key]) and peak.mean
        ],
        summary=table if rows else None,
        examples=text_examples(source),
        examples_title="Generated text by layer",
    )


def _best(rows: list[CurveRow]) -> CurveRow | None:
    """The layer with the highest mean, the first one in a tie."""
    known = [row for row in rows if row.mean is not None]
    return max(known, key=lambda row: (or_nan(row.mean), -row.layer), default=None)


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
        summary=_grid_table(source, best) if source.groups else None,
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


def _grid_table(source: Source, best: dict[str, GridRow]) -> Table:
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

"""The section of a lens that reads the groups' probabilities layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.stages.evaluate.statistics import leads
from pipeline.stages.evaluate.tables import means_by_group
from pipeline.stages.report.sections.examples import token_examples
from pipeline.stages.report.sections.parts import Baseline, Finding, Group, LensSection, Panel, Table
from pipeline.stages.report.sections.source import Source, layer_label, or_nan, sample_text, single_panels
from pipeline.stages.report.words import baseline_label, number, rank

__all__ = ["BASELINES", "baseline_means", "readings_section"]

BASELINES = ("target", "source")


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
    """All that the report says about such a lens."""
    groups = source.groups
    layers: list[int] = source.store.attributes["layers"]
    summary = _summary(source, groups)
    drawn = [row.group for row in summary if row.n]
    label = layer_label(source)

    def grouped(metric: str, title: str, note: str, top: float, baselines: Sequence[Baseline] = ()) -> Panel | None:
        series = [source.series(source.curve(metric, group.key), group) for group in drawn]
        caption = "Mean probability of each answer by layer"
        return Panel(metric, title, "", note, top, series, baselines, caption, label) if series else None

    main = grouped(
        "probability",
        "Probability",
        "summed over the tokens that count as the answer",
        source.top,
        _baselines(source, summary),
    )
    accuracy = grouped("top1_accuracy", "Top-1 accuracy", "share of examples whose top token counts as the answer", 1.0)
    counted = [row for row in source.curves if row.metric == "probability" and row.n]
    return LensSection(
        name=source.name,
        title=source.title,
        method=source.method,
        paper=source.paper,
        unit=source.unit,
        num_examples=source.count,
        n_text=sample_text(counted or [row for row in source.curves if not row.group], source.unit),
        layers_text=str(len(layers)),
        findings=_findings(source, {group.key: group for group in groups}, layers),
        groups=groups,
        main=main,
        panels=[*([accuracy] if accuracy else []), *single_panels(source)],
        summary=_table(source, summary) if summary else None,
        examples=token_examples(source),
    )


def baseline_means(source: Source, group: Group) -> dict[str, float]:
    """What the group's probability is without the lens: of the target prompt, of the source prompt, where known."""
    return {
        kind: row.mean
        for kind in BASELINES
        for row in source.curve(f"baseline_{kind}_probability", group.key)
        if row.mean is not None
    }


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
                baselines=baseline_means(source, group),
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

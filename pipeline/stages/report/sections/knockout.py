"""The section of an attention knock-out: what the answer loses without each block, by window of layers."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.stages.evaluate.tables import CurveRow
from pipeline.stages.report.sections.examples import block_examples
from pipeline.stages.report.sections.parts import Baseline, Group, LensSection, Panel, Series, Table
from pipeline.stages.report.sections.readings import baseline_means
from pipeline.stages.report.sections.source import Source, layer_label, or_nan, sample_text
from pipeline.stages.report.words import number, percent, spelled_block

__all__ = ["knockout_section"]

METRIC = "relative_probability"
COMMON = 0.1  # probability without a block, above which the axis is that of the other lenses
SINGLE = {
    "precision_at_1": ("Precision@1", "", "share of examples whose top token stays the model’s own", 1.0),
    "kl_nats": ("KL divergence", "nats", "from the unblocked distribution to the blocked one", None),
}


def knockout_section(source: Source) -> LensSection:
    """All that the report says about such a lens."""
    keys: list[str] = source.store.attributes["blocks"]
    blocks = [Group(key, f"without {spelled_block(key)}", color) for color, key in enumerate(keys)]
    measured = [group for group in source.groups if any(row.n for row in _of_group(source, group))]
    single = [
        Panel(metric, title, unit, note, top, _series(source, metric, "", blocks), layer_label=layer_label(source))
        for metric, (title, unit, note, top) in SINGLE.items()
        if any(source.curve(metric, "", block.key) for block in blocks)
    ]
    where = "around" if source.config.centred else "from"
    label = measured[0].label if measured else ""
    return LensSection(
        name=source.name,
        title=source.title,
        method=source.method,
        paper=source.paper,
        unit=source.unit,
        num_examples=source.count,
        n_text=sample_text(_of_group(source, measured[0]), source.unit)
        if measured
        else f"n = {source.count} {source.unit}",
        layers_text=str(len(source.store.attributes["layers"])),
        groups=source.groups,
        main=_left(source, measured[0], blocks) if measured else None,
        panels=[*(_probability(source, group, blocks) for group in measured), *single],
        remarks=[
            (block, f"leaves {percent(or_nan(worst.mean))} of {label}, {where} layer {worst.layer}")
            for block in blocks
            if measured and (worst := _lowest(source.curve(METRIC, measured[0].key, block.key)))
        ],
        summary=_table(source, measured[0], blocks) if measured else None,
        examples=block_examples(source),
        examples_title="Top token by window and blocked tokens",
    )


def _of_group(source: Source, group: Group) -> list[CurveRow]:
    return [row for row in source.curves if (row.metric, row.group) == (METRIC, group.key)]


def _left(source: Source, group: Group, blocks: Sequence[Group]) -> Panel:
    """What blocking leaves of one group's probability."""
    return Panel(
        metric=METRIC,
        title=f"Probability left, {group.label}",
        unit="",
        note="relative to the unblocked run",
        top=None,
        series=_series(source, METRIC, group.key, blocks),
        baselines=[Baseline("nothing blocked", None, 1.0)],
        caption=f"Probability of {group.label} with tokens blocked, divided by that without; mean over examples",
        layer_label=layer_label(source),
    )


def _probability(source: Source, group: Group, blocks: Sequence[Group]) -> Panel:
    """One group's probability itself: of what is rare, a share says little."""
    own = baseline_means(source, group).get("source")
    return Panel(
        metric="probability",
        title=f"Probability, {group.label}",
        unit="",
        note="with tokens blocked",
        top=source.top if own is not None and own > COMMON else None,
        series=_series(source, "probability", group.key, blocks),
        baselines=[] if own is None else [Baseline("nothing blocked", None, own)],
        layer_label=layer_label(source),
    )


def _series(source: Source, metric: str, group: str, blocks: Sequence[Group]) -> list[Series]:
    return [source.series(source.curve(metric, group, block.key), block) for block in blocks]


def _lowest(rows: Sequence[CurveRow]) -> CurveRow | None:
    """The window that leaves least, the first one in a tie."""
    known = [row for row in rows if row.mean is not None]
    return min(known, key=lambda row: (or_nan(row.mean), row.layer), default=None)


def _table(source: Source, group: Group, blocks: Sequence[Group]) -> Table:
    rows = []
    for block in blocks:
        points, worst = source.curve(METRIC, group.key, block.key), _lowest(source.curve(METRIC, group.key, block.key))
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
    own = baseline_means(source, group).get("source")
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

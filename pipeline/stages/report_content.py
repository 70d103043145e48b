"""What the report says: plain data drawn from a run's artifacts. No drawing and no markup here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from interp.prompts.identity import identity_prompt
from pipeline.config.lens import LensConfig, LogitLensConfig, PatchscopeConfig
from pipeline.stages.evaluate import means_by_group
from pipeline.stages.report_text import PAPERS, baseline_label, describe, readable, visible
from pipeline.stages.statistics import leads
from pipeline.stages.tables import CurveRow
from pipeline.stages.tokens import Row, Tokens
from pipeline.store import Store

__all__ = [
    "Baseline",
    "Cell",
    "Example",
    "Group",
    "LensSection",
    "Panel",
    "Series",
    "lens_section",
]

BASELINES = ("target", "source")
SINGLE_PANELS = {
    "entropy_bits": ("Entropy", "bits", "of the distribution over the vocabulary"),
    "entropy_nats": ("Entropy", "nats", "of the distribution over the vocabulary"),
    "kl_nats": ("KL divergence", "nats", "from the last layer’s distribution to this layer’s"),
    "precision_at_1": ("Precision@1", "", "share of examples whose top token is the model’s own"),
    "surprisal_nats": ("Surprisal", "nats", "−ln of the model’s own probability of the top token"),
}


@dataclass(frozen=True)
class Group:
    """A group of answer tokens: its key, its label for people, and its place in the palette."""

    key: str
    label: str
    color: int


@dataclass(frozen=True)
class Series:
    """One curve; every list is by layer, NaN where unknown. `group` is None for a metric without groups."""

    group: Group | None
    layers: Sequence[int]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    n: Sequence[int]


@dataclass(frozen=True)
class Baseline:
    """A dashed horizontal line: mean probability in an unpatched run."""

    label: str
    group: Group
    value: float


@dataclass(frozen=True)
class Panel:
    """One chart over layers.

    Arguments:
        metric: as in `curves.parquet`.
        title, unit, note: for people.
        top: where the axis ends, for values between 0 and 1; None: at a round number above the values.
        series, baselines: what is drawn.
    """

    metric: str
    title: str
    unit: str
    note: str
    top: float | None
    series: Sequence[Series]
    baselines: Sequence[Baseline] = ()


@dataclass(frozen=True)
class Cell:
    """One of the top tokens of one example at one layer; `groups` are those that the token is an answer of."""

    text: str
    token_id: int
    probability: float
    log_prob: float
    groups: Sequence[Group]


@dataclass(frozen=True)
class Example:
    """One example of a lens.

    Arguments:
        title: for people.
        labels: what the example is about.
        prompts: (caption, text) of what the model was fed.
        answers: each group with its accepted words.
        rows: (layer, top tokens, most probable first), from the last layer to the first.
    """

    title: str
    labels: Mapping[str, str]
    prompts: Sequence[tuple[str, str]]
    answers: Sequence[tuple[Group, Sequence[str]]]
    rows: Sequence[tuple[int, Sequence[Cell]]]


@dataclass(frozen=True)
class SummaryRow:
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


@dataclass(frozen=True)
class Finding:
    """A stretch of layers that one group leads (`pipeline.stages.statistics.leads`), and its highest mean there."""

    group: Group
    first_layer: int
    last_layer: int
    taken_at: float | None
    highest: float


@dataclass(frozen=True)
class LensSection:
    """One lens of the run."""

    name: str
    title: str
    method: str
    paper: str
    unit: str
    num_examples: int
    n_text: str
    findings: Sequence[Finding]
    groups: Sequence[Group]
    main: Panel | None
    panels: Sequence[Panel]
    summary: Sequence[SummaryRow]
    baseline_labels: Mapping[str, str]
    examples: Sequence[Example] = field(default_factory=tuple)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _series(rows: Sequence[CurveRow], group: Group | None, interval: str) -> Series:
    return Series(
        group=group,
        layers=[row.layer for row in rows],
        mean=[_or_nan(row.mean) for row in rows],
        low=[_or_nan(getattr(row, f"{interval}_low")) for row in rows],
        high=[_or_nan(getattr(row, f"{interval}_high")) for row in rows],
        n=[row.n for row in rows],
    )


def _findings(rows: Sequence[CurveRow], groups: Mapping[str, Group], layers: Sequence[int]) -> list[Finding]:
    means = means_by_group(rows)
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


def _n_text(rows: Sequence[CurveRow], unit: str) -> str:
    counts = sorted({row.n for row in rows}) or [0]
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"n = {span} {unit}"


def _summary(curves: Mapping[tuple[str, str], Sequence[CurveRow]], groups: Sequence[Group]) -> list[SummaryRow]:
    table = []
    for group in groups:
        points = curves["probability", group.key]
        known = [row for row in points if row.mean is not None]
        peak = max(known, key=lambda row: (_or_nan(row.mean), -row.layer), default=None)
        index = points.index(peak) if peak else 0
        baselines = {
            kind: row.mean
            for kind in BASELINES
            for row in curves.get((f"baseline_{kind}_probability", group.key), ())
            if row.mean is not None
        }
        table.append(
            SummaryRow(
                group=group,
                n=max(row.n for row in points),
                first=points[0].mean,
                peak=peak.mean if peak else None,
                peak_layer=peak.layer if peak else None,
                last=points[-1].mean,
                accuracy=curves["top1_accuracy", group.key][index].mean,
                rank=curves["rank", group.key][index].mean,
                baselines=baselines,
            )
        )
    return table


def _baselines(summary: Sequence[SummaryRow], config: LensConfig) -> list[Baseline]:
    """For each unpatched prompt the line of its own answer, that is the group which it makes most probable."""
    lines = []
    for kind in BASELINES:
        best = max((row for row in summary if kind in row.baselines), key=lambda row: row.baselines[kind], default=None)
        if best is not None:
            lines.append(Baseline(baseline_label(config, kind), best.group, best.baselines[kind]))
    return lines


def axis_top(rows: Sequence[CurveRow]) -> float:
    """Where the axis of probabilities ends: at 1, or lower where all of a run's lenses leave most of it empty.

    Arguments:
        rows: of all lenses.
    """
    highest = max(
        (max(_or_nan(row.mean), row.normal_high or 0.0, row.bootstrap_high or 0.0) for row in rows
         if row.metric.endswith("probability") and row.mean is not None),
        default=1.0,
    )  # fmt: skip
    return next((top for top in (0.1, 0.25, 0.5) if highest <= top), 1.0)


def lens_section(
    name: str,
    store: Store,
    rows: Sequence[CurveRow],
    tokens: Tokens,
    config: LensConfig,
    *,
    interval: str,
    top: float,
    num_examples: int,
) -> LensSection:
    """All that the report says about one lens.

    Arguments:
        name: of the lens.
        store: its store.
        rows: its rows of `curves.parquet`.
        tokens: the artifact `tokens/`.
        config: its config.
        interval: `normal` or `bootstrap`.
        top: where the axis of probabilities ends, the same for all lenses of a page (`axis_top`).
        num_examples: how many examples are shown, spread evenly from the first to the last.
    """
    attributes = store.attributes
    groups = [
        Group(key, readable(attributes["group_labels"].get(key, key)), color)
        for color, key in enumerate(attributes["groups"])
    ]
    by_key = {group.key: group for group in groups}
    curves: dict[tuple[str, str], list[CurveRow]] = {}
    for row in rows:
        curves.setdefault((row.metric, row.group), []).append(row)
    summary = _summary(curves, groups)
    drawn = [group for group, line in zip(groups, summary, strict=True) if line.n]

    def grouped(metric: str, title: str, note: str, top: float, baselines: Sequence[Baseline] = ()) -> Panel | None:
        series = [_series(curves[metric, group.key], group, interval) for group in drawn]
        return Panel(metric, title, "", note, top, series, baselines) if series else None

    main = grouped(
        "probability",
        "Probability",
        "summed over the tokens that count as the answer",
        top,
        _baselines(summary, config),
    )
    accuracy = grouped("top1_accuracy", "Top-1 accuracy", "share of examples whose top token counts as the answer", 1.0)
    single = [
        Panel(
            metric,
            title,
            unit,
            note,
            1.0 if metric == "precision_at_1" else None,
            [_series(curves[metric, ""], None, interval)],
        )
        for metric, (title, unit, note) in SINGLE_PANELS.items()
        if (metric, "") in curves
    ]
    examples_word = str(attributes["examples"])
    count = len(store.static("row"))
    main_rows = [row for row in rows if row.metric == "probability" and row.n] or [row for row in rows if not row.group]
    num_sources = max((len(pair.sources) for pair in tokens.pairs), default=1)
    return LensSection(
        name=name,
        title=name.replace("_", " ").capitalize(),
        method=describe(config, num_sources),
        paper=PAPERS[config.kind],
        unit=examples_word,
        num_examples=count,
        n_text=_n_text(main_rows, examples_word),
        findings=_findings(rows, by_key, attributes["layers"]),
        groups=groups,
        main=main,
        panels=[*([accuracy] if accuracy else []), *single],
        summary=summary,
        baseline_labels={
            kind: baseline_label(config, kind) for kind in BASELINES if any(kind in row.baselines for row in summary)
        },
        examples=_examples(store, tokens, config, by_key, num_examples),
    )


def chosen(count: int, wanted: int) -> list[int]:
    """Which of `count` examples are shown: `wanted` of them, from the first to the last at even distances."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(wanted, count)).tolist()}) if count else []


def _prompts_of(row: int, tokens: Tokens, config: LensConfig, on_pairs: bool) -> list[tuple[str, str]]:
    if not on_pairs:
        prompts = [("Prompt" if isinstance(config, LogitLensConfig) else "Source prompt", tokens.prompts[row].prompt)]
    else:
        pair = tokens.pairs[row]
        mean = isinstance(config, PatchscopeConfig) and config.sources == "mean"
        sources = list(pair.sources) if mean else list(pair.sources)[:1]
        prompts = []
        for number, source in enumerate(sources, start=1):
            which = f" {number} of {len(sources)}" if len(sources) > 1 else ""
            prompts.append((f"Source prompt{which}", tokens.prompts[source].prompt))
        prompts.append(("Target prompt", tokens.targets[pair.target].prompt))
    if isinstance(config, PatchscopeConfig) and config.target == "identity":
        prompts.append(("Target prompt (identity)", identity_prompt(config.target_prompt)))
    return [(caption, readable(text)) for caption, text in prompts]


def _examples(
    store: Store, tokens: Tokens, config: LensConfig, groups: Mapping[str, Group], wanted: int
) -> list[Example]:
    on_pairs = store.attributes["examples"] == "pairs"
    vocabulary, layers = store.attributes["vocabulary"], store.attributes["layers"]
    rows = store.static("row")
    examples = []
    for example in chosen(len(rows), wanted):
        row = int(rows[example])
        record: Any = tokens.pairs[row] if on_pairs else tokens.prompts[row]
        ids = store.read("top_ids", example=example)  # (layer, top)
        log_probs = store.read("top_log_prob", example=example)
        heat = []
        for index, layer in reversed(list(enumerate(layers))):
            cells = [
                Cell(
                    text=visible(vocabulary.get(str(token), "")) or "∅",
                    token_id=token,
                    probability=math.exp(log_prob),
                    log_prob=log_prob,
                    groups=[group for key, group in groups.items() if token in record.answers.get(key, ())],
                )
                for token, log_prob in zip(ids[index].tolist(), log_probs[index].tolist(), strict=True)
            ]
            heat.append((int(layer), cells))
        examples.append(
            Example(
                title=f"{'Pair' if on_pairs else 'Prompt'} {row}",
                labels={readable(name): readable(value) for name, value in _labels(record).items()},
                prompts=_prompts_of(row, tokens, config, on_pairs),
                answers=[(g, [readable(word) for word in record.words.get(key, ())]) for key, g in groups.items()],
                rows=heat,
            )
        )
    return examples


def _labels(record: Row | Any) -> dict[str, str]:
    return {name.replace("_", " "): value for name, value in record.labels.items() if name != "collides"}

"""What every section of the report draws from, and what they have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.text import readable
from pipeline.artifacts.tokens import Tokens
from pipeline.stages.evaluate.tables import CurveRow, GridRow
from pipeline.stages.report.sections.parts import Group, Panel, Series
from pipeline.stages.report.words import PAPERS, describe, describe_mapping
from pipeline.store import Store

__all__ = ["Source", "axis_top", "chosen", "layer_label", "metric_note", "or_nan", "sample_text", "single_panels"]

SINGLE_PANELS = {
    "entropy_bits": ("Entropy", "bits", "of the distribution over the vocabulary"),
    "entropy_nats": ("Entropy", "nats", "of the distribution over the vocabulary"),
    "kl_nats": ("KL divergence", "nats", "from the distribution at layer {last} to this layer’s"),
    "precision_at_1": ("Precision@1", "", "share of examples whose top token is the model’s own"),
    "surprisal_nats": ("Surprisal", "nats", "−ln of the model’s own probability of the top token"),
    "generated_tokens": ("Generated tokens", "", "until the model ended its text, or the limit"),
}
# What the model says, and where a patch is, at which token.
OF_A_PATCH = {
    "precision_at_1": "share of examples whose top token is what the model itself says after the source token",
    "surprisal_nats": "−ln of the model’s own probability, after the source token, of the top token",
}
OF_A_KIND = {("attention_object", "kl_nats"): "from the unpatched target prompt’s distribution to this one"}


@dataclass(frozen=True)
class Source:
    """One lens of a finished run.

    Arguments:
        name: of the lens.
        config: its config.
        store: its store.
        curves: its rows of `curves.parquet`.
        grids: its rows of `grids.parquet`.
        tokens: the artifact `tokens/`.
        interval: `normal` or `bootstrap`.
        top: where the axis of probabilities ends, the same for all lenses of a page (`axis_top`).
        num_examples: how many examples are shown, spread evenly from the first to the last.
    """

    name: str
    config: Any
    store: Store
    curves: Sequence[CurveRow]
    grids: Sequence[GridRow]
    tokens: Tokens
    interval: str
    top: float
    num_examples: int

    @property
    def groups(self) -> list[Group]:
        """The groups of answer tokens, in the palette's order."""
        labels: Mapping[str, str] = self.store.attributes["group_labels"]
        return [
            Group(key, readable(labels.get(key, key)), color)
            for color, key in enumerate(self.store.attributes["groups"])
        ]

    @property
    def unit(self) -> str:
        """What the examples are, in the plural."""
        return str(self.store.attributes["examples"])

    @property
    def count(self) -> int:
        """How many examples there are."""
        return len(self.store.static("row"))

    @property
    def method(self) -> str:
        """What the lens does, in words."""
        what = describe(self.config, max((len(pair.sources) for pair in self.tokens.pairs), default=1))
        return " ".join([what, *([mapped] if (mapped := describe_mapping(self.store.attributes)) else [])])

    @property
    def title(self) -> str:
        """The lens's name for people."""
        return self.name.replace("_", " ").capitalize()

    @property
    def paper(self) -> str:
        """Where the method comes from."""
        return PAPERS.get(self.config.kind) or str(getattr(self.config, "paper", "a plugin's"))  # one of the user's own

    def curve(self, metric: str, group: str = "", block: str = "") -> list[CurveRow]:
        """The rows of one curve, by layer."""
        return [row for row in self.curves if (row.metric, row.group, row.block) == (metric, group, block)]

    def series(self, rows: Sequence[CurveRow], group: Group | None) -> Series:
        """A curve to draw."""
        return Series(
            group=group,
            layers=[row.layer for row in rows],
            mean=[or_nan(row.mean) for row in rows],
            low=[or_nan(getattr(row, f"{self.interval}_low")) for row in rows],
            high=[or_nan(getattr(row, f"{self.interval}_high")) for row in rows],
            n=[row.n for row in rows],
        )


def or_nan(value: float | None) -> float:
    """A number, NaN for what is not known."""
    return math.nan if value is None else value


def sample_text(rows: Sequence[CurveRow] | Sequence[GridRow], unit: str) -> str:
    """How many examples count in some rows."""
    counts = sorted({row.n for row in rows}) or [0]
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"n = {span} {unit}"


def layer_label(source: Source) -> str:
    """What stands along the axis of layers."""
    window = getattr(source.config, "window", 1)
    if window == 1:
        return "Layer"
    return "Middle layer of the window" if getattr(source.config, "centred", False) else "First layer of the window"


def single_panels(source: Source) -> list[Panel]:
    """The metrics that are about no group and no block."""
    return [
        Panel(
            metric=metric,
            title=title,
            unit=unit,
            note=metric_note(source, metric, note),
            top=1.0 if metric == "precision_at_1" else None,
            series=[source.series(rows, None)],
            layer_label=layer_label(source),
        )
        for metric, (title, unit, note) in SINGLE_PANELS.items()
        if (rows := source.curve(metric))
    ]


def metric_note(source: Source, metric: str, note: str) -> str:
    """What a metric is, in the words of `SINGLE_PANELS` where the lens has no others.

    Arguments:
        source: the lens.
        metric: as in the tables.
        note: of the metric; `{last}` stands for the last layer that was read.
    """
    if (source.config.kind, metric) in OF_A_KIND:
        return OF_A_KIND[source.config.kind, metric]
    if source.config.patches:
        note = OF_A_PATCH.get(metric, note)
    return note.format(last=source.store.attributes["layers"][-1]) if "{last}" in note else note


def axis_top(rows: Sequence[CurveRow]) -> float:
    """Where the axis of probabilities ends: at 1, or lower where all of a run's lenses leave most of it empty.

    Arguments:
        rows: of all lenses.
    """
    highest = max(
        (max(or_nan(row.mean), row.normal_high or 0.0, row.bootstrap_high or 0.0) for row in rows
         if row.metric.endswith("probability") and not row.block and row.mean is not None),
        default=1.0,
    )  # fmt: skip
    return next((top for top in (0.1, 0.25, 0.5) if highest <= top), 1.0)


def chosen(count: int, wanted: int) -> list[int]:
    """Which of `count` examples are shown: `wanted` of them, from the first to the last at even distances."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(wanted, count)).tolist()}) if count else []

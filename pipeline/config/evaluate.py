"""Sections `evaluate` and `report`: the statistics of the curves, and the page that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config.base import LARGEST_SEED, bounded, load_section, section_from


@dataclass(frozen=True)
class EvaluateConfig:
    """How curves are summarized.

    Arguments:
        confidence: of the intervals, between 0 and 1.
        bootstrap_samples: resamples of the bootstrap interval.
        seed: of the bootstrap.
        entropy_unit: `bits` or `nats`.
    """

    confidence: float = bounded(0.95, 0, 1, above=True, below=True)
    bootstrap_samples: int = bounded(1000, 1, 100_000)  # all are in memory at once
    seed: int = bounded(0, 0, LARGEST_SEED)
    entropy_unit: str = "bits"


def evaluate_from(values: dict[str, Any]) -> EvaluateConfig:
    """The section from plain values; see `section_from`."""
    return section_from(EvaluateConfig, values, "evaluate")


def load_evaluate_config(params: str = "params.yaml") -> EvaluateConfig:
    """The section of a run folder's `params.yaml`."""
    return evaluate_from(load_section("evaluate", params))


@dataclass(frozen=True)
class ReportConfig:
    """What the page shows.

    Arguments:
        title: headline of the page.
        interval: band around the curves: `normal` or `bootstrap`.
        examples: how many examples get a heat map of top tokens by layer.
        figure_format: `svg` or `png`, of the static figures beside the page.
    """

    title: str = "Interpipe run"
    interval: str = "normal"
    examples: int = bounded(3, 0, 1000)
    figure_format: str = "svg"


def report_from(values: dict[str, Any]) -> ReportConfig:
    """The section from plain values; see `section_from`."""
    return section_from(ReportConfig, values, "report")


def load_report_config(params: str = "params.yaml") -> ReportConfig:
    """The section of a run folder's `params.yaml`."""
    return report_from(load_section("report", params))

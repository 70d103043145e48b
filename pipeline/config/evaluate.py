"""Sections `evaluate` and `report`: statistics of the curves, and the page that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.config.section import LARGEST_SEED, bounded, chosen


@dataclass(frozen=True)
class EvaluateConfig:
    """How curves are summarized.

    Arguments:
        confidence: of the intervals, between 0 and 1.
        bootstrap_samples: resamples of the bootstrap interval.
        seed: of the bootstrap.
        entropy_unit: `bits` or `nats`.
    """

    section: ClassVar[str] = "evaluate"
    confidence: float = bounded(0.95, 0, 1, above=True, below=True)
    bootstrap_samples: int = bounded(1000, 1, 100_000)  # all are in memory at once
    seed: int = bounded(0, 0, LARGEST_SEED)
    entropy_unit: str = chosen("bits", "bits", "nats")


@dataclass(frozen=True)
class ReportConfig:
    """What the page shows.

    Arguments:
        title: headline of the page.
        interval: band around the curves: `normal` or `bootstrap`.
        examples: how many examples get a heat map of top tokens by layer.
        figure_format: `svg`, `pdf` or `png`, of the static figures beside the page.
    """

    section: ClassVar[str] = "report"
    title: str = "Interpipe run"
    interval: str = chosen("normal", "normal", "bootstrap")
    examples: int = bounded(3, 0, 1000)
    figure_format: str = chosen("svg", "svg", "pdf", "png")

"""Section `evaluate`: the statistics of the curves."""

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

"""Section `report`: the page that a run leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config.base import bounded, load_section, section_from


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

"""Make the sections of the report from a run's artifacts: plain data, panels to draw among it, no markup."""

from __future__ import annotations

from pipeline.stages.report.sections.curves import generation_section, knockout_section, readings_section
from pipeline.stages.report.sections.grids import generation_grid_section, grid_section
from pipeline.stages.report.sections.source import (
    Comparison,
    LensSection,
    Source,
    axis_top,
    chosen,
    comparisons,
)

__all__ = ["Comparison", "LensSection", "Source", "axis_top", "chosen", "comparisons", "lens_section"]


def lens_section(source: Source) -> LensSection:
    """All that the report says about one lens, by what its numbers stand over."""
    if "token_ids" in source.store.arrays:
        crossed = len(source.store.dimensions("num_tokens")) == 3  # (example, source layer, target layer)
        return generation_grid_section(source) if crossed else generation_section(source)
    axes = source.store.dimensions("entropy")[1:]
    if axes == ("source_layer", "target_layer"):
        return grid_section(source)
    if axes == ("layer", "block"):
        return knockout_section(source)
    return readings_section(source)

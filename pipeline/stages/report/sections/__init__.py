"""What the report says: plain data drawn from a run's artifacts. No drawing and no markup here."""

from __future__ import annotations

from pipeline.stages.report.sections.comparison import comparisons
from pipeline.stages.report.sections.generation import generation_grid_section, generation_section
from pipeline.stages.report.sections.grid import grid_section
from pipeline.stages.report.sections.knockout import knockout_section
from pipeline.stages.report.sections.parts import Comparison, LensSection
from pipeline.stages.report.sections.readings import readings_section
from pipeline.stages.report.sections.source import Source, axis_top, chosen

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

"""The figure: the log odds of all lenses in one panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.stages.report.own_figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.stages.report.sections import Source


@figure("log_odds", title="Opposite or word", note="Above the line the opposite is more probable than the word itself.")
def log_odds(lenses: Sequence[Source]) -> Figure | None:
    """A curve a lens; None: no lens has the metric."""
    from matplotlib.figure import Figure  # not where the config is checked, which need not wait for it

    curves = {lens.title: rows for lens in lenses if (rows := lens.curve("log_odds"))}
    if not curves:
        return None
    drawn = Figure(figsize=(4.0, 2.5), layout="constrained")
    axes = drawn.subplots()
    for name, rows in curves.items():
        axes.plot([row.layer for row in rows], [row.mean for row in rows], marker="o", label=name)
    axes.axhline(0.0, linewidth=0.8, color="#888888")
    axes.set_xlabel("Layer")
    axes.set_ylabel("Log odds (nats)")
    axes.legend(frameon=False)
    return drawn

"""The figure: the log odds of every word, a curve each, where the metric's own panel has the mean over all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opposites.metric import log_odds
from pipeline.metrics import Measured, figure

if TYPE_CHECKING:
    from interp.plots import Frame, Panel
    from pipeline.stages.report.source import Source


@figure("each_word")
def each_word(lens: Source) -> list[tuple[Panel, Frame]]:
    """One panel; none where the lens has no such numbers, or not by layer."""
    from interp.plots import HALF, Curves, Group, Series  # not where a config is checked, which need not wait for it

    measured = Measured(lens.store)
    values = log_odds(measured)  # (example, layer)
    if values is None or measured.axes != ("layer",):
        return []
    layers = lens.store.attributes["layers"]
    words = [lens.tokens.prompts[row].labels["word"] for row in lens.store.static("row").tolist()]
    unknown, ones = [float("nan")] * len(layers), [1] * len(layers)
    series = [
        Series(Group(word, word, color), layers, own.tolist(), unknown, unknown, ones)
        for color, (word, own) in enumerate(zip(words, values, strict=True))
    ]
    note = "of each word’s opposite against the word itself"
    return [(Curves("log_odds", "Log odds of each word", "nats", note, None, series), HALF)]

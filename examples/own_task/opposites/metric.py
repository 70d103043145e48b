"""The metric: by how much the opposite is more probable than the word itself."""

from __future__ import annotations

from pipeline.metrics import Floats, Measured, metric

SCALE = 1.0  # in nats; 1 / ln 2 for bits


@metric("log_odds", title="Log odds", unit="nats", note="of the opposite against the word itself", more_is_better=True)
def log_odds(lens: Measured) -> Floats | None:
    """log P(opposite) - log P(word) of every example and layer; None: the lens, or the task, has no such numbers."""
    if not lens.reads or not {"opposite", "word"} <= set(lens.groups):
        return None
    log_prob = lens.read("log_prob")  # (example, layer, group)
    return SCALE * (log_prob[..., lens.groups.index("opposite")] - log_prob[..., lens.groups.index("word")])

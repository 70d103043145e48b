"""The table of metrics: a metric of one's own is one function, and takes its place in the tables and the summary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import metrics
from pipeline.config.evaluate import EvaluateConfig
from pipeline.metrics import METRICS, Floats, Measured, figure, metric
from pipeline.stages.evaluate.__main__ import evaluate_lens, summarize
from pipeline.store import open_store
from tests.pipeline.stages.finished_run import NUM_LAYERS, make_run


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, metrics.Metric]]:
    """A table that is put back afterwards."""
    monkeypatch.setattr(metrics, "METRICS", table := dict(METRICS))
    monkeypatch.setattr("pipeline.stages.evaluate.__main__.METRICS", table)
    yield table


def top_probability(lens: Measured) -> Floats | None:
    return np.exp(lens.read("top_log_prob", top=0)) if lens.has("top_log_prob") else None


def test_a_metric_of_ones_own_is_measured_like_ours(own: dict[str, metrics.Metric], tmp_path: Path) -> None:
    metric("top_probability", title="Top probability", more_is_better=True, is_share=True)(top_probability)
    assert own["top_probability"].is_share and "top_probability" not in METRICS
    store = open_store(make_run(tmp_path / "run", lenses=("logit_lens",)) / "lens.zarr/logit_lens")
    rows = evaluate_lens("logit_lens", store, EvaluateConfig(bootstrap_samples=10))
    wanted = np.exp(store.read("top_log_prob", top=0).astype(float)).mean(0)
    measured = [row.mean for row in rows.curves if row.metric == "top_probability"]
    assert len(measured) == NUM_LAYERS
    np.testing.assert_allclose(np.array(measured, dtype=float), wanted, rtol=1e-6)
    assert summarize(rows, len(store.static("row")))["top_probability"]["peak"] == max(measured)


def test_two_functions_do_not_share_a_name(own: dict[str, metrics.Metric]) -> None:
    with pytest.raises(
        ValueError, match=r"metric 'rank' is there twice: pipeline\.metrics\.rank and .*top_probability"
    ):
        metric("rank", title="Rank")(top_probability)
    metric("rank", title="Rank", of_groups=True)(METRICS["rank"].measure)  # the same function again is no other


def test_two_figures_do_not_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FIGURES", {})
    figure("map")(top_probability)
    assert figure("map")(top_probability) is top_probability  # the same function again is no other
    with pytest.raises(ValueError, match=r"figure 'map' is there twice: .*top_probability and pipeline\.metrics\.rank"):
        figure("map")(METRICS["rank"].measure)

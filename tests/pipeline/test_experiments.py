"""Every experiment, really run in its tiny size, by the command that a user types. They share one cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.pipeline.config.test_conf import EXPERIMENTS
from tests.pipeline.conftest import Run


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment(experiment: str, repository: Path, pipeline: Run) -> None:
    folder = repository / "outputs" / experiment
    ran = pipeline(f"experiment={experiment}", f"hydra.run.dir={folder}", "debug=tiny")
    assert ran.returncode == 0, ran.stderr
    assert f"report    outputs/{experiment}/report/index.html" in ran.stdout
    assert (folder / "report" / "index.html").stat().st_size > 0
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert run["status"] == "FINISHED"
    assert set(run["stages"]) == {"tokenize", "collect", "tune", "lens", "evaluate", "report"}
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) == set(params["lens"])
    for name, numbers in metrics.items():
        assert numbers["n"] > 0
        curves = (numbers.get("probability") or numbers["generation_accuracy"]).values()
        by_block = params["lens"][name]["kind"] == "knockout"
        for curve in [block for group in curves for block in group.values()] if by_block else curves:
            assert 0 <= curve["lowest" if by_block else "peak"] <= 1

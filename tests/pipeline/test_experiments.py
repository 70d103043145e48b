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
    for numbers in metrics.values():
        assert numbers["n"] > 0
        for curve in (numbers.get("probability") or numbers["generation_accuracy"]).values():
            assert 0 <= curve["peak"] <= 1


def test_a_sweep_shares_work_and_survives_a_job(repository: Path, pipeline: Run) -> None:
    folder = repository / "outputs" / "sweep"
    ran = pipeline(
        "-m", "debug=tiny", "experiment=wendler_translation", "lens=logit_lens,patchscope_identity",
        "task.shots=2,170", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    # 170 solved lines are more than the model reads at once, which only tokenizing can tell.
    assert ran.returncode == 1, ran.stderr
    runs = [json.loads((folder / str(number) / "run.json").read_text(encoding="utf-8")) for number in range(4)]
    assert [run["status"] for run in runs] == ["FINISHED", "FAILED", "FINISHED", "FAILED"]
    assert "2 of 4 jobs finished" in ran.stdout
    last = ran.stderr[ran.stderr.rindex("error: 2 of 4 jobs failed:") :]
    assert "outputs/sweep/1" in last and "outputs/sweep/3" in last and "outputs/sweep/0" not in last
    # Two jobs that differ in their lens alone: the first to come collects, the other waits and takes its tensors.
    assert sum(not run["stages"]["collect"]["cached"] for run in (runs[0], runs[2])) <= 1
    assert runs[0]["outputs"]["activations.zarr"] == runs[2]["outputs"]["activations.zarr"]

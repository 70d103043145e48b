"""What a run folder tells, read without MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interp.errors import InterpError
from pipeline.tracking.payload import metric_name, parameters_of, read_run
from tests.pipeline.tracking.run_folders import make_run_folder


def test_parameters_are_flat_short_and_only_what_can_differ() -> None:
    parameters = parameters_of(
        {
            "model": {"name": "gpt2", "revision": None, "depends_on": "marker"},
            "task": {"source_languages": ["de", "nl"], "shots": 5, "patch_into": {"target_language": "es"}},
            "lens": {"patchscope": {"patch": "one_layer", "top_k": 5}},
            "report": {"title": "x"},
            "collect": {"sites": ["resid_post.*"] * 200},
        }
    )
    sites = parameters.pop("collect.sites")
    assert len(sites) == 500 and sites.endswith("…")
    assert parameters == {
        "model.name": "gpt2",
        "task.source_languages": '["de", "nl"]',
        "task.shots": "5",
        "task.patch_into.target_language": "es",
        "lens.patchscope.patch": "one_layer",
        "lens.patchscope.top_k": "5",
    }


def test_metric_names_hold_only_what_mlflow_takes() -> None:
    assert metric_name("logit lens", "p[0]", "", "größe@x") == "logit lens/p_0_/gr__e_x"


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    payload = read_run(
        make_run_folder(tmp_path / "run", "sqlite:///x", sweep={"name": "s", "swept": {"lens": "patchscope"}})
    )
    assert payload.name == "lens=patchscope"
    assert payload.ended - payload.started == 10_000
    assert ("patchscope/probability/source_concept", 2, 0.25) in payload.curves
    assert len(payload.curves) == 8, "two groups of four layers; the NaN row is left out"
    assert payload.summary == {
        "summary/patchscope.n": 7.0,
        "summary/patchscope.probability.a.peak": 0.75,
        "stage/collect.cached": 0.0,
        "stage/collect.seconds": 4.0,
        "stage/collect.model_seconds": 2.0,
        "stage/collect.tokens": 100.0,
        "stage/collect.tokens_per_second": 50.0,
    }
    assert payload.tags["git.dirty"] == "True" and payload.tags["sweep.lens"] == "patchscope"
    assert payload.tags["store.activations.zarr.digest"] == "b" * 32 + ".dir"
    assert not any("zarr" in artifact.name for artifact in payload.artifacts)


def test_a_run_is_named_by_its_experiment(tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path / "12-00-00", "sqlite:///x")
    run = json.loads((folder / "run.json").read_text())
    for overrides, name in (
        (["lens=patchscope"], "tiny translation 12-00-00"),
        (["experiment=dumas_e1", "task.shots=3"], "tiny dumas_e1 12-00-00"),
        (["experiment=dumas_e1", "experiment=null"], "tiny translation 12-00-00"),
    ):
        (folder / "run.json").write_text(json.dumps(run | {"overrides": overrides, "sweep": None}))
        assert read_run(folder).name == name


def test_a_failed_run_tells_no_results(tmp_path: Path) -> None:
    payload = read_run(make_run_folder(tmp_path / "run", "sqlite:///x", status="FAILED"))
    assert payload.curves == [] and not any(name.startswith("summary/") for name in payload.summary)
    assert payload.tags["message"] == "collect: the disk is full"


def test_a_run_whose_driver_was_killed_is_over(tmp_path: Path) -> None:
    assert read_run(make_run_folder(tmp_path / "run", "sqlite:///x", status="RUNNING")).status == "KILLED"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match=r"expected a run folder with run\.json"):
        read_run(tmp_path)

"""The real pipeline, by its command line, in a copy of this repository: what is shared, resumed, computed once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.object_cache import Cache
from pipeline.store import open_store
from pipeline.tracking.sending import connect
from tests.pipeline.copies import copy_code
from tests.pipeline.workflow.damage import flip, locked
from tests.pipeline.workflow.miniature import REPOSITORY

FOLDERS = ("interp", "pipeline", "conf")
FILES = ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
STAGES = ("tokenize", "collect", "tune", "lens", "evaluate", "report")
TINY = ("debug=tiny", "task.source_languages=[de]", "task.max_concepts=8", "task.pairs=2")
PATIENCE_SECONDS = 300


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, committed, in which one run, `outputs/first`, is finished."""
    root = tmp_path_factory.mktemp("copy") / "interpipe"
    for name in FOLDERS:
        copy_code(REPOSITORY / name, root / name)
    for name in FILES:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(REPOSITORY / name, root / name)
    git = ("git", "-C", str(root), "-c", "user.name=test", "-c", "user.email=test@example.org")
    for arguments in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "copy")):
        subprocess.run([*git, *arguments], check=True)
    pipeline(root, "hydra.run.dir=outputs/first", "lens=[logit_lens,patchscope]")
    return root


def environment(root: Path) -> dict[str, str]:
    """This process's environment, with what DVC keeps outside a project beside the copy."""
    return {**os.environ, "DVC_SITE_CACHE_DIR": str(root.with_name("site")), "OMP_NUM_THREADS": "1"}


def call(root: Path, *command: str) -> str:
    """Run a command in the copy; returns what it says."""
    ran = subprocess.run(
        command, cwd=root, env=environment(root), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def pipeline(root: Path, *overrides: str) -> str:
    """`python -m pipeline`, a tiny run."""
    return call(root, sys.executable, "-m", "pipeline", *overrides, *TINY)


def record(folder: Path) -> dict[str, Any]:
    """The run's `run.json`."""
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def computed(folder: Path) -> list[str]:
    """The stages that a run had to compute."""
    stages = record(folder)["stages"]
    assert tuple(sorted(stages)) == tuple(sorted(STAGES))
    return [name for name in STAGES if not stages[name]["cached"]]


def test_a_run_and_another_title(copy: Path) -> None:
    first = record(copy / "outputs/first")
    assert computed(copy / "outputs/first") == list(STAGES)
    assert first["status"] == "FINISHED"
    assert first["git"]["dirty"] is False
    assert first["git"]["commit"] == call(copy, "git", "rev-parse", "HEAD").strip()
    assert {"tokens/prompts", "activations.zarr", "lens.zarr", "metrics.json", "report"} <= set(first["outputs"])
    assert first["versions"]["torch"]

    said = pipeline(copy, "hydra.run.dir=outputs/titled", "lens=[logit_lens,patchscope]", "report.title=Another")
    assert "collect: cached" in said
    assert computed(copy / "outputs/titled") == ["report"]
    titled = record(copy / "outputs/titled")["outputs"]
    assert {name for name in titled if titled[name] != first["outputs"][name]} == {"report"}
    assert first["stages"]["collect"]["versions"]["torch"] == first["versions"]["torch"]
    assert "Another" in (copy / "outputs/titled/report/index.html").read_text(encoding="utf-8")


def test_another_lens_shares_the_activations(copy: Path) -> None:
    pipeline(copy, "hydra.run.dir=outputs/identity", "lens=logit_lens")
    assert computed(copy / "outputs/identity") == ["lens", "evaluate", "report"]


def test_a_run_without_a_lens_is_tracked(copy: Path) -> None:
    """`lens=[]` and `lens=none` are the same run: tokenize and collect, and a page about them."""
    uri = f"sqlite:///{copy}/outputs/none.db"
    said = pipeline(copy, "hydra.run.dir=outputs/none", "lens=[]", "tracking=default", f"tracking.uri={uri}")
    assert "collected outputs/none/activations.zarr; no lens was asked for" in said
    assert computed(copy / "outputs/none") == ["lens", "evaluate", "report"]
    folder = copy / "outputs/none"
    assert (folder / "lens.zarr").is_dir() and not any((folder / "lens.zarr").iterdir())
    assert "collected" in (folder / "report/index.html").read_text(encoding="utf-8").lower()
    client = connect(uri)
    experiment = client.get_experiment_by_name("interpipe")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED" and tracked.data.params["collect.sites"] == '["resid_post.*"]'
    # The empty folder of the stage `lens` is in the cache as any other artifact is.
    pipeline(copy, "hydra.run.dir=outputs/none again", "lens=none")
    assert computed(copy / "outputs/none again") == [] and (copy / "outputs/none again/lens.zarr").is_dir()


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("interp/activations/collecting.py", {"collect", "lens", "report"}),
        ("interp/lenses/logit_lens.py", {"lens", "report"}),
        ("pipeline/tasks/translation.py", {"tokenize", "report"}),
        ("pipeline/stages/evaluate/tables.py", {"evaluate", "report"}),
        ("pipeline/stages/report/page.py", {"report"}),
        ("pipeline/demo/lexicon.json", {"tokenize", "report"}),  # a file that code names, and the report is of all code
        ("pipeline/demo/model/config.json", {"tokenize", "collect", "tune", "lens"}),
        ("pipeline/tracking/sending.py", set()),
        ("pipeline/workflow/run.py", set()),
    ],
)
def test_changed_code_and_data_concern_the_stages_that_use_them(copy: Path, file: str, stages: set[str]) -> None:
    """As DVC sees it in a finished run folder, through its links."""
    path, folder = copy / file, copy / "outputs/first"
    before = path.read_bytes()
    path.write_bytes(before + (b"\nADDED = 1\n" if path.suffix == ".py" else b"\n"))
    try:
        # the stage `code` tells at once that the code is another one, and, when it has run, what is
        told = json.loads(call(folder, "dvc", "status", "--json", "code").splitlines()[-1])
        assert told["code"] == [{"changed deps": {file.partition("/")[0]: "modified"}}, "always changed"]
        call(folder, "dvc", "repro", "code")
        status = json.loads(call(folder, "dvc", "status", "--json").splitlines()[-1])
    finally:
        path.write_bytes(before)
        call(folder, "dvc", "repro", "code")
    assert status.pop("code") == ["always changed"]
    changed = {stage: entry["changed deps"] for stage, entries in status.items() for entry in entries}
    assert set(changed) == stages
    name = file.removesuffix(".py").replace("/", ".") if path.suffix == ".py" else file
    model = "pipeline/demo/model"
    for stage, dependencies in changed.items():
        assert dependencies.get(model if file.startswith(model) else file) == "modified" or dependencies == {
            f"code/{stage}.json": {name: "modified"}
        }


def test_a_killed_collect_is_resumed(copy: Path) -> None:
    overrides = ("hydra.run.dir=outputs/killed", "lens=logit_lens", "collect.block_size=1")
    driver = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *TINY, *overrides],
        cwd=copy, env=environment(copy), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE_SECONDS
    finished: list[Path] = []
    while not finished:
        assert time.monotonic() < deadline
        assert driver.poll() is None, "the run was over before it could be killed"
        finished = list((copy / ".interpipe/scratch").glob("collect-*/**/complete/*.json"))
        time.sleep(0.001)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (copy / "outputs/killed/activations.zarr").exists()
    assert record(copy / "outputs/killed")["status"] == "RUNNING"

    call(copy, sys.executable, "-m", "pipeline.workflow", "resume", "outputs/killed")
    assert computed(copy / "outputs/killed")[:2] == ["collect", "lens"]  # the same numbers may make the rest cached
    assert record(copy / "outputs/killed")["status"] == "FINISHED"
    assert list((copy / ".interpipe/scratch").glob("collect-*/")) == []
    whole, resumed = (
        open_store(copy / f"outputs/{name}/activations.zarr", verify=True) for name in ("first", "killed")
    )
    np.testing.assert_allclose(resumed.read("resid_post"), whole.read("resid_post"), rtol=1e-4, atol=1e-4)


def test_broken_objects_of_each_kind_are_computed_again_to_the_same_bytes(copy: Path) -> None:
    first, cache = copy / "outputs/first", Cache(copy / ".dvc/cache")
    shutil.rmtree(copy / ".dvc/cache/verified", ignore_errors=True)  # nobody has looked since all was computed
    assert list(cache.broken_objects()) == list(cache.broken_results()) == []

    def member(artifact: str, start: str) -> Path:
        files = cache.files(locked(first, artifact))
        return cache.object_path(next(name for file, name in files.items() if file.startswith(start)))

    broken = {
        "tokenize: tokens/targets": member("tokens/targets", "data"),
        "collect: activations.zarr": member("activations.zarr", "resid_post/c/"),
        "tune: tuned_lens": member("tuned_lens", ""),
        "evaluate: curves.parquet": cache.object_path(locked(first, "curves.parquet")),
        "evaluate: metrics.json": cache.object_path(locked(first, "metrics.json")),
    }
    for path in broken.values():
        flip(path)
    check = subprocess.run(
        [sys.executable, "-m", "pipeline.store", "verify", "--cache"],
        cwd=copy, env=environment(copy), capture_output=True, text=True,
    )  # fmt: skip
    assert check.returncode == 1
    assert sorted(line.split(": ")[0] for line in check.stdout.splitlines()) == sorted(map(str, broken.values()))

    said = pipeline(copy, "hydra.run.dir=outputs/mended", "lens=[logit_lens,patchscope]")
    lines = [line for line in said.splitlines() if "was broken and is thrown away" in line]
    for artifact, path in broken.items():
        assert len([line for line in lines if f"{artifact} was broken" in line and str(path) in line]) == 1, artifact
    assert len(lines) == len(broken)
    assert record(copy / "outputs/mended")["outputs"] == record(first)["outputs"]
    assert computed(copy / "outputs/mended") == list(STAGES)
    assert list(cache.broken_objects()) == list(cache.broken_results()) == []
    assert "ok" in call(copy, sys.executable, "-m", "pipeline.store", "verify", "--cache")


def test_a_sweep_computes_each_distinct_stage_once(copy: Path) -> None:
    sweep = ("-m", "task.target_language=es,nl", "lens=logit_lens,patchscope", "task.patch_into.target_language=it")
    pipeline(copy, *sweep, "hydra.sweep.dir=outputs/two", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    jobs = [copy / f"outputs/two/{number}" for number in range(4)]
    counts = Counter(stage for job in jobs for stage in computed(job))
    assert counts == {"tokenize": 2, "collect": 2, "lens": 4, "evaluate": 4, "report": 4}  # tune: cached

    pipeline(copy, *sweep, "lens=patchscope", "hydra.sweep.dir=outputs/again")
    again = [copy / f"outputs/again/{number}" for number in range(2)]
    assert [computed(job) for job in again] == [[], []]
    assert [record(job)["outputs"] for job in again] == [record(job)["outputs"] for job in jobs[1::2]]
    assert record(again[1])["sweep"]["swept"] == {"task.target_language": "nl"}


def test_dvc_at_the_root_shares_the_cache(copy: Path) -> None:
    tiny = [argument for override in (*TINY, "lens=[logit_lens,patchscope]") for argument in ("-S", override)]
    said = call(copy, "dvc", "exp", "run", *tiny)
    assert said.count("is cached - skipping run") == len(STAGES)
    assert (copy / "params.yaml").read_text() == (copy / "outputs/first/params.yaml").read_text()
    assert call(copy, "dvc", "repro").count("didn't change, skipping") == len(STAGES)
    plots = json.loads(call(copy, "dvc", "plots", "show", "--json").splitlines()[-1])
    assert plots["data"]["curves.csv"][0]["content"]["facet"]["row"]["field"] == "metric"
    assert plots["data"]["grids.csv"] == []  # no lens of this run has a map of source and target layers
    # nothing but the chosen parameters and DVC's own lock file is new to git
    assert call(copy, "git", "status", "--porcelain").split() == ["M", "params.yaml", "??", "dvc.lock"]


def test_params_yaml_is_the_default_config_everywhere() -> None:
    """`dvc repro` at the root, `dvc exp run` and `python -m pipeline` have one default config."""
    check = [sys.executable, "-m", "pipeline.workflow", "params"]
    assert "is what conf/ composes" in call(REPOSITORY, *check), "run `python -m pipeline.workflow params --write`"
    shown = call(REPOSITORY, sys.executable, "-m", "pipeline", "--cfg", "job", "--resolve")
    assert yaml.safe_load(shown) == yaml.safe_load((REPOSITORY / "params.yaml").read_text())

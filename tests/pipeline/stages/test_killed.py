"""Every stage, killed (SIGKILL) at several moments and run again: the same bytes, and nothing half-written in between.

`collect` is in `test_collect.py`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipeline.project import LINKED
from pipeline.validate import plain
from tests.pipeline.stages.killed import run_stage
from tests.pipeline.store.example import tree

OVERRIDES = [
    "lens=[logit_lens,tuned_lens,patchscope,patchscope_grid,patchscope_generate,attention_object,knockout]",
    "lens.patchscope.layers='1,3'", "lens.attention_object.layers='2,5'",
    "lens.patchscope_grid.source_layers='0,4'", "lens.patchscope_grid.target_layers='1-2'",
    "lens.patchscope_generate.layers='6'", "lens.knockout.layers='2,4'", "task.source_languages=[de]",
    "task.max_concepts=6", "task.pairs=4", "task.shots=2", "collect.block_size=2", "evaluate.bootstrap_samples=20",
    "report.examples=1", "store.chunk_bytes=1024", "tracking.enabled=false",
    "tune=default", "tune.steps=4", "tune.tokens_per_step=64", "tune.checkpoint_every=1", "tune.evaluate_tokens=64",
    "tune.affine=last", "tune.affine_ridge=1",
]  # fmt: skip
# What each stage makes, and where its processes are killed, one after the other: (pattern, number) of `killed.py`. A
# file is torn in unfinished work; the artifact is about to appear; it stands, complete; it stands and is replaced.
CASES: dict[str, tuple[tuple[str, ...], tuple[tuple[str, int], ...]]] = {
    "tokenize": (
        ("tokens/prompts", "tokens/targets", "tokens/pairs", "tokens/manifest.json"),
        (
            (r"^open .*/scratch/tokenize-.*/targets/data-.*\.arrow$", 0),
            (r"^open tokens/\.manifest\.json\.", 0),
            (r"^remove dataset_info\.json$", 1),
        ),
    ),
    "tune": (
        ("tuned_lens",),
        (
            (r"^rename .*/scratch/tune-.*/checkpoint\.safetensors$", 2),
            (r"^open .*/scratch/tune-.*/tuned_lens/\.config\.json", 0),
            (r"^open .*/scratch/tune-.*/tuned_lens/\.manifest\.json\.", 0),
            (r"^rename .* timings/tune\.json$", 0),
            (r"^remove config\.json$", 0),
        ),
    ),
    "lens": (
        ("lens.zarr",),
        (
            (r"^open .*/scratch/lens-.*/tuned_lens/log_prob/c/", 0),
            (r"^open .*/scratch/lens-.*/patchscope/log_prob/c/", 0),
            (r"^open .*/scratch/lens-.*/patchscope_grid/log_prob/c/", 0),
            (r"^open .*/scratch/lens-.*/patchscope_generate/token_ids/c/", 0),
            (r"^open .*/scratch/lens-.*/attention_object/log_prob/c/", 0),
            (r"^open .*/scratch/lens-.*/knockout/kl/c/", 0),
            (r"^rename .* timings/lens\.json$", 0),
            (r"^remove zarr\.json$", 3),
        ),
    ),
    "evaluate": (
        ("curves.parquet", "curves.csv", "grids.parquet", "grids.csv", "metrics.json"),
        (
            (r"^open .*curves\.parquet", 0),
            (r"^open .*curves\.csv", 0),
            (r"^open .*grids\.parquet", 0),
            (r"^open .*metrics\.json", 0),
            (r"^rename .* timings/evaluate\.json$", 0),
            (r"^open .*metrics\.json", 0),
        ),
    ),
    "report": (
        ("report",),
        (
            (r"^open .*/patchscope_grid\.svg$", 0),
            (r"^rename .*/report .*report\.incoming$", 0),
            (r"^rename .* timings/report\.json$", 0),
            (r"^remove .*\.svg$", 1),
        ),
    ),
}


@pytest.fixture(scope="module")
def undisturbed(repository: Path) -> Path:
    """A finished run folder of a few prompts and pairs, in a copy of the repository."""
    folder = repository / "killed" / "undisturbed"
    folder.mkdir(parents=True)
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        OmegaConf.save(OmegaConf.create(plain(compose("config", OVERRIDES))), folder / "params.yaml")
    for name in LINKED:
        (folder / name).symlink_to(repository / name)
    for stage in ("tokenize", "collect", "tune", "lens", "evaluate", "report"):
        run_stage(stage, folder)
    return folder


def files(path: Path) -> dict[str, bytes]:
    """The bytes of an artifact, by the files' names in it."""
    return {"": path.read_bytes()} if path.is_file() else tree(path)


@pytest.mark.parametrize("stage", CASES)
def test_a_killed_stage_is_run_again_to_the_same_bytes(repository: Path, undisturbed: Path, stage: str) -> None:
    artifacts, kills = CASES[stage]
    expected = {name: files(undisturbed / name) for name in artifacts}
    assert all(expected.values())
    folder = undisturbed.parent / stage
    shutil.copytree(undisturbed, folder, symlinks=True)
    for name in artifacts:  # as DVC does before it runs a stage
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for kill in kills:
        run_stage(stage, folder, kill)
        for name in artifacts:
            if (folder / name).exists():
                assert files(folder / name) == expected[name], f"{name} is half-written after {kill}"
    run_stage(stage, folder)
    assert {name: files(folder / name) for name in artifacts} == expected
    left = {path.relative_to(folder).as_posix() for path in folder.rglob(".*")}
    assert left == set(), "unfinished work is left in the run folder"
    assert not any((repository / ".interpipe/scratch").glob(f"{stage}-*/"))

"""Files that a killed process, or another program, left empty or in half: a run goes on to the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.workflow.cache import is_whole
from tests.pipeline.workflow.miniature import params, ran, record, run
from tests.pipeline.workflow.test_run import dvc

# What DVC calls to fill a file that it has emptied, and what ours is written with; here the process dies in the
# middle of `dvc.lock`.
DIES_IN_MID_DUMP = """
import io, os, pathlib, signal
import dvc.utils.serialize._yaml as module

dump, write_text = module._dump, pathlib.Path.write_text

def half(name, text):
    lock = str(name).endswith(("dvc.lock", "dvc.lock.incoming")) and text.count("cmd:") == 3
    return text[: text.rindex("cmd:") + 2] if lock else None

def die(data, stream):
    text = io.StringIO()
    dump(data, text)
    beginning = half(getattr(stream, "name", ""), text.getvalue())
    if beginning is not None:
        stream.write(beginning)
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    stream.write(text.getvalue())

def die_too(self, text, *options, **named):
    beginning = half(self, text)
    written = write_text(self, text if beginning is None else beginning, *options, **named)
    if beginning is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return written

module._dump, pathlib.Path.write_text = die, die_too
"""
TORN = ("dvc.lock", "params.yaml", "dvc.yaml", ".dvcignore", "run.json", ".dvc/config", ".dvc/tmp/rwlock")


def artifacts(folder: Path) -> dict[str, bytes]:
    """All that a finished run leaves to its reader."""
    return {name: (folder / name).read_bytes() for name in ("first.txt", "second/text.txt", "dvc.lock", "params.yaml")}


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Every Python process dies in the middle of writing a `dvc.lock` of three stages; called, it no longer does."""
    place = tmp_path / "deadly/sitecustomize.py"
    place.parent.mkdir()
    place.write_text(DIES_IN_MID_DUMP)
    monkeypatch.setenv("PYTHONPATH", str(place.parent))
    return place.unlink


def test_sigkill_in_the_middle_of_dvc_lock_leaves_the_one_before_it(root: Path, deadly: Callable[[], None]) -> None:
    status, said = run(root, "outputs/1", params())
    assert status == 1
    assert "the process that runs the stages was killed by SIGKILL" in said
    assert dvc(root / "outputs/1", "status", "first").strip().endswith("up to date.")
    assert (root / "outputs/1/.dvc.lock.incoming").exists()
    deadly()
    assert run(root, "outputs/1", None) == (0, "first: cached\nsecond: cached\n")
    assert run(root, "outputs/2", params())[0] == 0
    assert artifacts(root / "outputs/1") == artifacts(root / "outputs/2")
    assert ran(root) == ["first", "second"]
    assert dvc(root / "outputs/1", "repro").count("didn't change, skipping") == 2


def test_what_plain_dvc_leaves_in_half_is_mended(root: Path, deadly: Callable[[], None]) -> None:
    """DVC empties `dvc.lock` and fills it in place; nothing of ours runs before it refuses to read the rest."""
    status, _ = run(root, "outputs/1", params())
    assert status == 1
    folder = root / "outputs/1"
    environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(root / ".site")}
    killed = subprocess.run(["dvc", "repro"], cwd=folder, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    deadly()
    refused = subprocess.run(["dvc", "repro"], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 255
    assert "dvc.lock" in refused.stderr
    status, said = run(root, "outputs/1", None)
    assert status == 0
    assert said.startswith("dvc.lock was left in half and is thrown away; it is computed again, or taken whole")
    assert run(root, "outputs/2", params())[0] == 0
    assert artifacts(folder) == artifacts(root / "outputs/2")
    assert ran(root) == ["first", "second"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_a_run_goes_on_whatever_files_are_cut_short(finished: Path, share: float) -> None:
    root, folder = finished, finished / "outputs/1"
    whole = artifacts(folder)
    (folder / ".hydra").mkdir()
    (folder / ".hydra/overrides.yaml").write_text("- a=b\n- ")  # cut short where the second begins
    for name in TORN:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])
    (folder / "interp").unlink()
    status, said = run(root, "outputs/1", None)
    assert status == 0, said
    assert artifacts(folder) == whole
    assert (folder / "interp").is_dir()
    assert record(root, "outputs/1")["status"] == "FINISHED"
    assert record(root, "outputs/1")["overrides"] == ["a=b"]
    assert "params.yaml held only the beginning of the run's config; it is restored" in said
    assert "run.json cannot be read; it is written anew" in said
    assert ran(root) == ["first", "second"]
    assert dvc(folder, "repro").count("didn't change, skipping") == 2


def test_a_dvc_lock_cut_anywhere_is_whole_or_thrown_away(finished: Path) -> None:
    """What is believed of a cut one are whole stages."""
    content = (finished / "outputs/1/dvc.lock").read_bytes()
    stages = yaml.safe_load(content)["stages"]
    outs = {name: [out["path"] for out in stage["outs"]] for name, stage in stages.items()}
    assert list(outs) == ["code", "first", "second"]
    believed = [size for size in range(len(content) + 1) if is_whole(content[:size], outs)]
    assert believed == [content.index(b"  first:\n"), content.index(b"  second:\n"), len(content)]
    for size in believed:
        assert yaml.safe_load(content[:size])["stages"].items() <= stages.items()


def test_a_params_yaml_that_the_user_changed_is_left_alone(finished: Path) -> None:
    root = finished
    text = (root / "outputs/1/params.yaml").read_text()
    (root / "outputs/1/params.yaml").write_text(text.replace("title: title", "title: mine"))
    assert run(root, "outputs/1", None)[0] == 0
    assert (root / "outputs/1/second/text.txt").read_text() == "1\nmine"
    assert run(root, "outputs/1", params())[0] == 1

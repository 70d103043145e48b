"""Runs of the miniature repository: what is computed, what is cached, what a failed run says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.pipeline.workflow.miniature import params, ran, record, run


def dvc(folder: Path, *arguments: str) -> str:
    """Run the `dvc` command in a folder; returns what it says."""
    done = subprocess.run(
        ["dvc", *arguments],
        cwd=folder, capture_output=True, text=True, check=True,
        env={**os.environ, "DVC_SITE_CACHE_DIR": str(folder / ".site")},
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_stage_is_computed_once_whatever_run_asks_for_it(root: Path) -> None:
    assert run(root, "outputs/2026 ä/1", params())[0] == 0
    first = record(root, "outputs/2026 ä/1")
    assert first["status"] == "FINISHED"
    assert first["message"] is None
    assert first["format"] == "interpipe.run/1"
    assert (first["overrides"], first["sweep"]) == (["a=b"], {"name": "s", "swept": {"a": "b"}})
    assert {name: stage["cached"] for name, stage in first["stages"].items()} == {"first": False, "second": False}
    assert first["stages"]["first"]["rows"] == 3.0  # from timings/first.json
    assert first["started"] < first["ended"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first["ended"])
    assert first["versions"]["dvc"].startswith("3.")
    assert first["git"]["commit"] is None  # no commit yet
    assert first["git"]["dirty"] is True
    lock = yaml.safe_load((root / "outputs/2026 ä/1/dvc.lock").read_text())["stages"]
    assert first["outputs"] == {
        "first.txt": lock["first"]["outs"][0]["md5"],
        "second": lock["second"]["outs"][0]["md5"],
        "versions/first.json": lock["first"]["outs"][1]["md5"],
        "versions/second.json": lock["second"]["outs"][1]["md5"],
    }

    status, said = run(root, "outputs/2", params(title="another"))
    assert status == 0
    assert "first: cached\n" in said
    second = record(root, "outputs/2")
    assert {name: stage["cached"] for name, stage in second["stages"].items()} == {"first": True, "second": False}
    assert "rows" not in second["stages"]["first"]
    assert (root / "outputs/2/second/text.txt").read_text() == "1\nanother"

    assert run(root, "outputs/3", params()) == (0, "first: cached\nsecond: cached\n")
    assert record(root, "outputs/3")["outputs"] == first["outputs"]
    assert (root / "outputs/3/second/text.txt").read_text() == "1\ntitle"
    assert ran(root) == ["first", "second", "second"]


def test_code_and_data_are_dependencies_through_the_links(root: Path) -> None:
    run(root, "outputs/1", params())
    second = root / "pipeline/stages/second.py"
    text = second.read_text()
    second.write_text(f'"""A docstring."""  # a comment\n{text}')
    assert run(root, "outputs/1", params()) == (0, "first: cached\nsecond: cached\n")
    assert dvc(root / "outputs/1", "status") == "code:\n\talways changed\n"
    second.write_text(f"{text}\nADDED = 1\n")
    # an older state of the code is seen at once, by the stage `code`; that then says what it is
    assert re.search(r"code:\n\tchanged deps:\n\t\tmodified: +pipeline\n", dvc(root / "outputs/1", "status"))
    dvc(root / "outputs/1", "repro", "code")
    status = dvc(root / "outputs/1", "status")
    assert re.search(
        r"second:\n\tchanged deps:\n\t\tcode/second.json:\n\t\t\tmodified: +pipeline.stages.second\n", status
    )
    assert "first:" not in status
    # a run says it too, in an existing run folder, which goes on with the present code, and in another one
    named = r"second: \d+\.\d s, computed again for changes in pipeline\.stages\.second\n"
    for folder, code in (("outputs/1", "ADDED = 1"), ("outputs/new", "ADDED = 2")):
        second.write_text(f"{text}\n{code}\n")
        exited, said = run(root, folder, params())
        assert exited == 0 and "first: cached\n" in said and re.search(named, said)
        assert record(root, folder)["stages"]["second"]["changed_code"] == ["pipeline.stages.second"]
        assert "modified" not in dvc(root / folder, "status")
    assert ran(root) == ["first", "second", "second", "second"]
    second.write_text(text)  # as it was: nothing is computed, nothing to be said
    assert run(root, "outputs/new", params()) == (0, "first: cached\nsecond: cached\n")
    (root / "pipeline/data.txt").write_text("other data")
    assert run(root, "outputs/2", params())[0] == 0
    # `first` gives the same bytes as before, so `second` is cached
    assert ran(root) == ["first", "second", "second", "second", "first"]
    assert record(root, "outputs/2")["stages"]["second"]["cached"] is True


def test_run_folders_and_the_root_share_the_cache_with_plain_dvc(root: Path) -> None:
    run(root, "outputs/1", params())
    assert dvc(root / "outputs/1", "repro").count("didn't change, skipping") == 2
    (root / "params.yaml").write_text(yaml.safe_dump(params()))
    assert dvc(root, "repro").count("is cached - skipping run") == 2
    (root / "params.yaml").write_text(yaml.safe_dump(params(value=7)))
    dvc(root, "repro")
    assert run(root, "outputs/2", params(value=7)) == (0, "first: cached\nsecond: cached\n")
    assert ran(root) == ["first", "second", "first", "second"]
    # a paper's folder is a run folder without .dvc, which the root's project holds
    paper = root / "papers/one"
    shutil.copytree(
        root / "outputs/1", paper, symlinks=True, ignore=shutil.ignore_patterns(".dvc", "first.txt", "second")
    )
    dvc(root, "repro", "-R", "papers")
    assert (paper / "second/text.txt").read_text() == "1\ntitle"
    assert len(ran(root)) == 4


def test_the_repository_can_be_moved_with_its_runs(root: Path, tmp_path: Path) -> None:
    run(root, "outputs/1", params())
    moved = root.rename(tmp_path / "moved")
    (moved / "outputs/1/first.txt").unlink()
    assert run(moved, "outputs/1", params())[0] == 0
    assert (moved / "outputs/1/first.txt").read_text() == "1\n"
    assert ran(moved) == ["first", "second"]


def test_a_cache_in_another_place_and_run_folders_on_another_disk(root: Path, tmp_path: Path) -> None:
    (root / ".dvc/config.local").write_text(f'[cache]\n    dir = "{tmp_path}/big, disk"\n')
    (tmp_path / "runs").mkdir()
    (root / "outputs").symlink_to(tmp_path / "runs")
    assert run(root, "outputs/1", params())[0] == 0
    assert (tmp_path / "big, disk/runs").is_dir()
    assert not (root / ".dvc/cache").exists()
    (root / ".dvc/config.local").unlink()  # settings of the user's own in a run folder stay
    settings = root / "outputs/1/.dvc/config"
    settings.write_text(settings.read_text() + "['remote \"store\"']\n    url = /x\n")
    assert run(root, "outputs/1", params())[0] == 0
    assert 'remote "store"' in settings.read_text()
    (root / ".dvc/config").write_text("[core\n")
    assert "error: the settings of DVC in " in run(root, "outputs/1", params())[1]


def test_a_lost_cache_is_computed_again(root: Path) -> None:
    run(root, "outputs/1", params())
    for entry in (root / ".dvc/cache/files").rglob("*"):
        if entry.is_file() and entry.read_bytes() == b"1\n":
            entry.unlink()
    assert run(root, "outputs/2", params())[0] == 0
    assert (root / "outputs/2/first.txt").read_text() == "1\n"
    assert record(root, "outputs/2")["stages"]["first"]["cached"] is False
    assert record(root, "outputs/2")["stages"]["second"]["cached"] is True


def test_a_failed_stage_says_why_and_how_to_go_on(root: Path) -> None:
    status, said = run(root, "outputs/1", params(fault="message"))
    assert status == 1
    assert "[first] error: expected more,\ngot less\n" in said  # on the terminal while it happens
    failed = record(root, "outputs/1")
    assert failed["status"] == "FAILED"
    assert failed["stages"] == failed["outputs"] == {}
    assert failed["message"] == (
        "stage first failed: expected more,\ngot less\nWhat is finished is kept. Go on from there with\n"
        "    python -m pipeline.workflow resume outputs/1"
    )
    assert "to standard output" in said

    assert run(root, "outputs/2", params(fault="crash"))[0] == 1
    message = record(root, "outputs/2")["message"]
    assert "RuntimeError: a fault of the program" in message
    assert "line 19, in run" in message

    run(root, "outputs/3", params(fault="memory"))
    assert "it was killed by SIGKILL; the system does that to" in record(root, "outputs/3")["message"]

    (root / "pipeline/data.txt").unlink()
    run(root, "outputs/4", params())
    assert (
        "stage first failed: it depends on pipeline/data.txt, which does not exist"
        in record(root, "outputs/4")["message"]
    )

    (root / "dvc.yaml").write_text("stages: 3\n")
    run(root, "outputs/5", params())
    assert "the stages could not be run: " in record(root, "outputs/5")["message"]


def test_a_run_is_resumed_with_its_own_config_and_record(root: Path) -> None:
    second = root / "pipeline/stages/second.py"
    good = second.read_text()
    second.write_text(good.replace("def run():", "def run():\n    raise OSError('no')"))
    assert run(root, "outputs/1", params(title="mine"))[0] == 1
    assert set(record(root, "outputs/1")["outputs"]) == {"first.txt", "versions/first.json"}
    second.write_text(good)
    assert run(root, "outputs/1", None)[0] == 0
    resumed = record(root, "outputs/1")
    assert resumed["status"] == "FINISHED"
    assert (resumed["overrides"], resumed["sweep"]["name"]) == (["a=b"], "s")
    assert resumed["stages"]["first"]["cached"] is True
    assert (root / "outputs/1/second/text.txt").read_text() == "1\nmine"
    assert ran(root) == ["first", "second"]


def test_another_config_in_the_same_folder_is_refused(root: Path) -> None:
    run(root, "outputs/1", params())
    status, said = run(root, "outputs/1", params(title="another"))
    assert status == 1
    assert "holds a run with another config (sections that differ: second)" in said
    assert yaml.safe_load((root / "outputs/1/params.yaml").read_text()) == params()
    assert record(root, "outputs/1")["status"] == "FINISHED"
    assert run(root, "nothing", None)[1] == (
        "error: expected a run folder with params.yaml, got nothing. `python -m pipeline` makes one.\n"
    )
    (root / "outputs/2/interp").mkdir(parents=True)
    assert "expected no 'interp' of its own in run folder" in run(root, "outputs/2", params())[1]

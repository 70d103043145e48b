"""What is broken in the cache that all runs share, or in a run folder, is noticed, thrown away and computed again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import object_cache
from pipeline.object_cache import Cache
from pipeline.store import schema
from tests.pipeline.workflow.damage import flip, locked
from tests.pipeline.workflow.miniature import params, ran, run
from tests.pipeline.workflow.test_run import dvc


def test_the_marker_of_a_store_has_one_name() -> None:
    assert object_cache.STORE_FILE == schema.STORE_FILE


@pytest.fixture
def root(finished: Path) -> Path:
    """A miniature repository in which one run, `outputs/1`, is finished."""
    return finished


@pytest.fixture
def cache(root: Path) -> Cache:
    """Its cache."""
    return Cache(root / ".dvc/cache")


def result_of(cache: Cache, stage: str) -> Path:
    """The file of the only result of a stage, besides the one that stands for any versions of libraries."""
    found = {path: result for path, result in cache.read_results() if result["cmd"].endswith(stage)}
    (path,) = (path for path, result in found.items() if result["params"]["versions.json"] != {stage: "any"})
    return path


def assert_good(root: Path, folder: str, title: str = "title") -> None:
    """A run folder holds the right bytes."""
    assert (root / folder / "first.txt").read_bytes() == b"1\n"
    assert (root / folder / "second/text.txt").read_text() == f"1\n{title}"


@pytest.mark.parametrize(
    ("broken", "again"),
    [
        ("a file", "outputs/2"),
        ("a file of a folder", "outputs/2"),
        ("a folder", "outputs/2"),
        ("a result", "outputs/2"),
        ("a file and a folder", "outputs/1"),
    ],
)
def test_a_broken_object_is_computed_again(root: Path, cache: Cache, broken: str, again: str) -> None:
    second = locked(root / "outputs/1", "second")
    (text,) = cache.files(second).values()
    first = locked(root / "outputs/1", "first.txt")
    which = {
        "a file": [cache.object_path(first)],
        "a file of a folder": [cache.object_path(text)],
        "a folder": [cache.object_path(second)],
        "a result": [result_of(cache, "first")],
        "a file and a folder": [cache.object_path(first), cache.object_path(second)],
    }[broken]
    for path in which:
        flip(path, 3 if broken == "a result" else 0)
    status, said = run(root, again, params())
    assert status == 0, said
    assert_good(root, again)
    lines = [line for line in said.splitlines() if "broken" in line]
    named = {"a result": [], "a file": ["first"], "a file and a folder": ["first"]}.get(broken, ["second"])
    assert [line.split(": ")[0] for line in lines] == named
    assert all("its bytes are others than its MD5 says" in line for line in lines)
    assert list(cache.broken_objects()) == list(cache.broken_results()) == []
    # what may have been computed from the broken first.txt is computed again, too, whether it was broken or not
    again_computed = {"a result": ["first"], "a file": ["first", "second"], "a file and a folder": ["first", "second"]}
    assert ran(root)[2:] == again_computed.get(broken, ["second"])


def test_what_was_computed_from_a_broken_object_does_not_outlive_it(root: Path, cache: Cache) -> None:
    """Plain `dvc repro` believes the cache, and keeps what it computes from it under the name of the good bytes."""
    flip(cache.object_path(locked(root / "outputs/1", "first.txt")), 0)
    made = shutil.ignore_patterns("first.txt", "second", "dvc.lock")
    shutil.copytree(root / "outputs/1", root / "outputs/2", symlinks=True, ignore=made)
    text = (root / "outputs/2/params.yaml").read_text()
    (root / "outputs/2/params.yaml").write_text(text.replace("title: title", "title: other"))
    dvc(root / "outputs/2", "repro")
    assert (root / "outputs/2/second/text.txt").read_text() == "0\nother"
    assert run(root, "outputs/3", params(title="third"))[0] == 0
    assert_good(root, "outputs/3", "third")
    for folder in ("outputs/4", "outputs/2"):
        assert run(root, folder, params(title="other"))[0] == 0
        assert_good(root, folder, "other")


def test_results_older_than_the_last_look_at_the_object_are_kept(root: Path, cache: Cache) -> None:
    assert run(root, "outputs/2", params(title="other"))[0] == 0  # looks at first.txt
    flip(cache.object_path(locked(root / "outputs/1", "first.txt")))
    assert run(root, "outputs/3", params())[0] == 0
    assert ran(root) == ["first", "second", "second", "first"]  # `second` of outputs/1 is from before the look
    assert run(root, "outputs/4", params(title="other"))[0] == 0
    assert ran(root)[4:] == ["second"]


def test_a_stage_that_computes_a_broken_object_again_is_not_handed_the_broken_one(root: Path, cache: Cache) -> None:
    flip(cache.object_path(locked(root / "outputs/1", "first.txt")))
    code = root / "pipeline/stages/first.py"
    code.write_text(code.read_text() + "# changed\n")  # the same bytes under another key
    assert run(root, "outputs/2", params())[0] == 0
    assert_good(root, "outputs/2")
    assert list(cache.broken_objects()) == []


def test_a_run_folder_has_its_own_small_files_and_damage_to_them_is_mended(root: Path, cache: Cache) -> None:
    folder = root / "outputs/2"
    for _ in range(2):  # the second time DVC learns that the copies are right, and believes it from then on
        assert run(root, "outputs/2", params())[0] == 0
    for file in (folder / "first.txt", folder / "second/text.txt"):
        assert file.stat().st_nlink == 1
        flip(file)
    assert list(cache.broken_objects()) == []
    status, said = run(root, "outputs/2", params())
    assert status == 0
    assert_good(root, "outputs/2")
    assert "first: first.txt was broken and is thrown away" in said
    assert "second: second was broken and is thrown away" in said
    assert said.count(": cached") == 2
    assert ran(root) == ["first", "second"]


def test_verify_goes_through_the_cache(root: Path, cache: Cache) -> None:
    first = cache.object_path(locked(root / "outputs/1", "first.txt"))
    second = cache.object_path(locked(root / "outputs/1", "second"))
    (text,) = cache.files(locked(root / "outputs/1", "second")).values()
    flip(first)
    cache.object_path(text).unlink()
    result = result_of(cache, "second")
    flip(result, 3)
    program = [
        sys.executable,
        "-c",
        f"import sys; from pipeline.store.__main__ import *; from pathlib import Path; "
        f"sys.exit(verify_cache(Cache({str(cache.folder)!r}), remove='--remove' in sys.argv, as_json=False))",
    ]
    shown = subprocess.run(program, capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    lines = {line.split(": ")[0]: line for line in shown.stdout.splitlines()}
    assert set(lines) == {str(first), str(second), str(result)}
    assert "1 of its 1 files are missing, text.txt for one" in lines[str(second)]
    assert shown.stderr == "3 broken: remove it with --remove\n"
    removed = subprocess.run([*program, "--remove"], capture_output=True, text=True, check=False)
    assert removed.returncode == 0
    assert not first.exists()
    assert not second.exists()
    assert not result.exists()
    assert list(cache.broken_objects()) == list(cache.broken_results()) == []
    assert run(root, "outputs/2", params())[0] == 0
    assert_good(root, "outputs/2")

"""Where a repository may lie and how it came there: an archive, clones, worktrees, machines without git or a home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.workflow.miniature import build, params, ran, record, run

NAME = "a répo's folder, 中文 #1"
BOTH = {"first": False, "second": False}


def git(root: Path, *arguments: str) -> str:
    """Run git in a folder; returns what it says."""
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return subprocess.run(
        ["git", "-C", str(root), *author, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature repository with two commits."""
    root = build(tmp_path_factory.mktemp("origin") / NAME)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "one")
    git(root, "commit", "--quiet", "--allow-empty", "--message", "two")
    return root


def archive(origin: Path, place: Path) -> dict[str, str]:
    """A downloaded archive, on a machine without git."""
    shutil.copytree(origin, place, ignore=shutil.ignore_patterns(".git", "outputs"))
    return {"PATH": str(Path(sys.executable).parent)}


def shallow_clone(origin: Path, place: Path) -> dict[str, str]:
    git(origin, "clone", "--quiet", "--depth", "1", origin.as_uri(), str(place))
    assert git(place, "rev-list", "--count", "HEAD") == "1"
    return {}


def detached(origin: Path, place: Path) -> dict[str, str]:
    git(origin, "clone", "--quiet", str(origin), str(place))
    git(place, "checkout", "--quiet", "--detach", "HEAD~1")
    return {}


def worktree(origin: Path, place: Path) -> dict[str, str]:
    git(origin, "worktree", "add", "--quiet", str(place), "-b", "second")
    return {}


def no_home(origin: Path, place: Path) -> dict[str, str]:
    shutil.copytree(origin, place)
    return {"HOME": "/nonexistent/home"}


@pytest.mark.parametrize("make", [archive, shallow_clone, detached, worktree, no_home])
def test_a_run_of_a_repository_from_anywhere(make: Any, origin: Path, tmp_path: Path) -> None:
    place = tmp_path / NAME
    environment = make(origin, place)
    status, said = run(place, "outputs/1", params(), **environment)
    assert status == 0, said
    recorded = record(place, "outputs/1")
    assert {name: stage["cached"] for name, stage in recorded["stages"].items()} == BOTH
    state = recorded["git"]
    if make is archive:
        assert state == {"commit": None, "branch": None, "dirty": None}
    else:
        assert state["commit"] == git(place, "rev-parse", "HEAD")
        assert (state["branch"] is None) == (make is detached)
    assert run(place, "outputs/2", params(), **environment) == (0, "first: cached\nsecond: cached\n")
    assert ran(place) == ["first", "second"]
    assert (place / ".interpipe/home").is_dir() == (make is no_home)
    assert not (place / "outputs/1/~").exists() and not (place / "~").exists()


def test_worktrees_have_a_cache_each(origin: Path, tmp_path: Path) -> None:
    place = tmp_path / NAME
    git(origin, "worktree", "add", "--quiet", "--detach", str(place))
    assert run(origin, "outputs/own", params(value=7))[0] == 0
    assert run(place, "outputs/own", params(value=7))[0] == 0
    assert {name: stage["cached"] for name, stage in record(place, "outputs/own")["stages"].items()} == BOTH
    assert os.path.samefile(place / "outputs/own/pipeline", place / "pipeline"), "the code of its own worktree"

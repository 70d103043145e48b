"""Fixtures of the workflow's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.pipeline.workflow.miniature import build, params, run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A fresh miniature repository, in a folder whose name is no easy one."""
    return build(tmp_path / "a répo's folder, #1")


@pytest.fixture(scope="session")
def model_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature repository in which one run, `outputs/1`, is finished; for copying alone."""
    root = build(tmp_path_factory.mktemp("model") / "a répo's folder, #1")
    assert run(root, "outputs/1", params())[0] == 0
    return root


@pytest.fixture
def finished(model_repository: Path, tmp_path: Path) -> Path:
    """A miniature repository in which one run, `outputs/1`, is finished."""
    return shutil.copytree(model_repository, tmp_path / model_repository.name, symlinks=True)

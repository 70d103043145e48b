"""Fixtures that the tests of the pipeline share."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.paths import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's code, so that its cache, its locks and its tracking are the tests' own."""
    copy = tmp_path_factory.mktemp("repository")
    for folder in ("conf", "interp", "pipeline"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / ".dvc").mkdir()
    for file in ("dvc.yaml", ".dvcignore", ".dvc/config"):
        shutil.copy(ROOT / file, copy / file)
    return copy


@pytest.fixture(scope="session")
def pipeline(repository: Path) -> Run:
    """`pipeline(*arguments)`: the command `python -m pipeline ARGUMENTS` in the copy of the repository."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline", *arguments]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)

    return run

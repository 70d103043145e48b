"""Fixtures of the workflow's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.workflow.miniature import build


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A fresh miniature repository, in a folder whose name is no easy one."""
    return build(tmp_path / "a répo's folder, #1")

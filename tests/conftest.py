"""Fixtures that every room's tests share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_folder
from tests.vision import vision_folder_of

# Two busy processes on two cores stall at OpenMP's barriers: neither this one nor those that it starts have threads.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`model_folder(family)`: a local folder with a tiny random model of that family, made once per test run."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tiny_folder(family, tmp_path_factory.mktemp(f"tiny-{family}"))
        return made[family]

    return folder


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`vision_folder(family)`: the same with a model that sees and its processor (`tests.vision.FAMILIES`)."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = vision_folder_of(family, tmp_path_factory.mktemp(f"vision-{family}"))
        return made[family]

    return folder


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Take back what a test made of the root logger: Hydra gives it a level, and a handler to a stream that closes."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    for handler in root.handlers:
        if handler not in handlers and isinstance(handler, logging.FileHandler):
            handler.close()
    root.handlers[:] = handlers

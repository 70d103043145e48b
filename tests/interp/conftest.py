"""One standardized model per family, and per family that sees, for all tests of the library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from interp.model import StandardizedTransformer


@pytest.fixture(scope="session")
def standardized(model_folder: Callable[[str], Path]) -> Callable[[str], StandardizedTransformer]:
    """`standardized(family)`: the tiny model of a family, loaded once."""
    made: dict[str, StandardizedTransformer] = {}

    def model(family: str) -> StandardizedTransformer:
        if family not in made:
            made[family] = StandardizedTransformer(model_folder(family), dtype="float32", device_map="cpu")
        made[family]._module.zero_grad()  # what an earlier test's backward pass has left
        return made[family]

    return model


@pytest.fixture(scope="session")
def seeing(vision_folder: Callable[[str], Path]) -> Callable[[str], StandardizedTransformer]:
    """`seeing(family)`: the tiny model of a family that takes images, loaded once."""
    made: dict[str, StandardizedTransformer] = {}

    def model(family: str) -> StandardizedTransformer:
        if family not in made:
            made[family] = StandardizedTransformer(vision_folder(family), dtype="float32", device_map="cpu")
        made[family]._module.zero_grad()
        return made[family]

    return model

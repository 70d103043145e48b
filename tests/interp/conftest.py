"""One standardized model per family for all tests of the library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from interp.model import StandardizedTransformer
from tests.vision.plain import Plain
from tests.vision.seeing import Seeing


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
def seeing(vision_folder: Callable[[str], Path]) -> Callable[[str], Seeing]:
    """`seeing(family)`: a tiny model that sees, in float64, and the same in plain transformers; loaded once."""
    made: dict[str, Seeing] = {}

    def model(family: str) -> Seeing:
        if family not in made:
            folder = vision_folder(family)
            ours = StandardizedTransformer(folder, dtype="float64", device_map="cpu")
            made[family] = Seeing(family, ours, Plain(folder, ours.processor, ours.architecture.layers))
        return made[family]

    return model

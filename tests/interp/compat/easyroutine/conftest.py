"""easyroutine's models over the tiny models that all tests of the library share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from interp.compat.easyroutine import HookedModel
from interp.model import StandardizedTransformer
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def hooked(standardized: Callable[[str], StandardizedTransformer]) -> Callable[[str], HookedModel]:
    """`hooked(family)`: the tiny model of a family; "biased" is a Llama whose projections all have a bias."""
    made: dict[str, HookedModel] = {}

    def model(family: str) -> HookedModel:
        if family not in made:
            given = (
                StandardizedTransformer(tiny_model("llama", attention_bias=True), tokenizer=tiny_tokenizer())
                if family == "biased"
                else standardized(family)
            )
            made[family] = HookedModel.from_pretrained(given)
        return made[family]

    return model


@pytest.fixture
def llama(hooked: Callable[[str], HookedModel]) -> Iterator[HookedModel]:
    """The tiny Llama, whose heads share keys and values in groups of two."""
    yield hooked("llama")
    hooked("llama").clean_interventions()


@pytest.fixture(scope="session")
def by_transformers() -> Any:
    """The same model as transformers has it, on its own."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def seeing(vision_folder: Callable[[str], Path]) -> Callable[[str], HookedModel]:
    """`seeing(family)`: the tiny model of a family that sees."""
    made: dict[str, HookedModel] = {}

    def model(family: str) -> HookedModel:
        if family not in made:
            given = StandardizedTransformer(
                vision_folder(family), dtype="float32", attn_implementation="eager", verify=False
            )
            made[family] = HookedModel.from_pretrained(given)
        return made[family]

    return model

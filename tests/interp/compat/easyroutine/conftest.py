"""easyroutine's models over the tiny models that all tests of the library share."""

from __future__ import annotations

from collections.abc import Callable

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

"""Tiny models of any family for runs, made once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from interp.model import StandardizedTransformer
from tests.families import build
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="session")
def wrapped() -> Callable[[str], StandardizedTransformer]:
    """`wrapped(family)`: a tiny model of any family, made once."""
    made: dict[str, StandardizedTransformer] = {}

    def model(family: str) -> StandardizedTransformer:
        if family not in made:
            made[family] = StandardizedTransformer(build(family), tokenizer=tiny_tokenizer(), verify=False)
        return made[family]

    return model

"""One model under easyroutine's names, and the same as transformers has it, for all tests of the room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from interp.compat.easyroutine import HookedModel
from interp.model import StandardizedTransformer
from tests.tiny import tiny_model


@pytest.fixture
def hooked(standardized: Callable[[str], StandardizedTransformer]) -> HookedModel:
    """A tiny Llama, whose queries share keys and values in groups of two."""
    return HookedModel.from_pretrained(standardized("llama"))


@pytest.fixture(scope="session")
def plain() -> Any:
    """The same model, on its own."""
    return tiny_model("llama")

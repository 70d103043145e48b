"""Identity prompts, letter by letter."""

from __future__ import annotations

import pytest

from interp.errors import InterpError
from interp.prompts import IDENTITY_PROMPTS, identity_prompt

WRITTEN = {
    "king": "king king\n1135 1135\nhello hello\n?",
    "cat": "cat -> cat\n1135 -> 1135\nhello -> hello\n?",
    "cat_dog": "cat cat dog dog 1234 1234 hello hello ?",
}


def test_identity_prompts() -> None:
    assert IDENTITY_PROMPTS == WRITTEN
    assert {name: identity_prompt(name) for name in WRITTEN} == WRITTEN
    assert identity_prompt("The capital of x") == "The capital of x"


def test_wrong_names_are_refused() -> None:
    with pytest.raises(InterpError, match="Did you mean 'king'"):
        identity_prompt("kings")
    with pytest.raises(InterpError, match="Known: cat, cat_dog, king"):
        identity_prompt(" ")

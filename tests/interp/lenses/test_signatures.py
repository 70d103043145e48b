"""Arguments have one name in all lenses and their configs: those of the table in the glossary."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

import interp.lenses
from pipeline.config.lens import LensConfig

GLOSSARY = Path(__file__).parents[3] / "docs" / "glossary.md"
LENSES = {
    name: function
    for name, function in vars(interp.lenses).items()
    if name in interp.lenses.__all__ and inspect.isfunction(function) and name != "load_jacobians"
}
PLURAL = re.compile(r"(^|_)position$")  # of a config alone


def table() -> tuple[set[str], set[str], set[str]]:
    """Names of arguments, of keys of a config, and what they are not called."""
    text = GLOSSARY.read_text(encoding="utf-8").split("## Arguments of the lenses")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    arguments, keys = ({name for row in rows for name in re.findall(r"`(\w+)`", row[at])} for at in (0, 1))
    return arguments, keys, {name for row in rows for name in re.findall(r"\w+", row[3])}


@pytest.mark.parametrize("lens", LENSES)
def test_an_argument_has_the_name_of_the_table(lens: str) -> None:
    arguments, _, others = table()
    named = list(inspect.signature(LENSES[lens]).parameters)
    assert set(named) <= arguments, f"not in docs/glossary.md: {set(named) - arguments}"
    assert not any(PLURAL.search(name) or name in others - arguments for name in named)
    assert named[0] == "model" and named[2 if named[1] in ("lens", "jacobians") else 1] == "source"


@pytest.mark.parametrize("kind", [kind for kind in LensConfig.kinds if kind.isidentifier()])
def test_a_key_of_a_config_has_the_name_of_the_table(kind: str) -> None:
    _, keys, _ = table()
    named = {described.name for described in fields(LensConfig.kinds[kind])} - {"kind"}
    assert named <= keys, f"not in docs/glossary.md: {named - keys}"


def test_the_table_names_what_there_is() -> None:
    arguments, keys, _ = table()
    assert len(LENSES) == 9
    assert arguments == {name for lens in LENSES.values() for name in inspect.signature(lens).parameters}
    assert keys == {field.name for kind in LensConfig.kinds.values() for field in fields(kind)} - {"kind"}


def test_a_default_is_one_in_all_lenses() -> None:
    """But where the docstring of a lens says another."""
    found: dict[str, set[object]] = {}
    for lens in LENSES.values():
        for name, parameter in inspect.signature(lens).parameters.items():
            found.setdefault(name, set()).add(parameter.default)
    several = {name for name, defaults in found.items() if len(defaults) > 1}
    # What a generation may draw; states that are read out without a run; an attribution is of all parts; who receives;
    # Geva et al. name no window.
    assert several == {"top_k", "batch_size", "sites", "target_positions", "window"}

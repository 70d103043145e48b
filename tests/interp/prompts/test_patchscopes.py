"""The target prompts of Patchscopes, letter by letter."""

from __future__ import annotations

import pytest

from interp.errors import InterpError
from interp.prompts import ATTRIBUTES, attribute_prompt, entity_description_prompt, token_identity_prompt
from interp.prompts import identity_prompt as named
from tests.interp.prompts.algorithms import algorithm


def test_token_identity() -> None:
    prompt = token_identity_prompt()
    assert prompt.text == "cat -> cat\n1135 -> 1135\nhello -> hello\n?" == named("cat")
    assert prompt.spans == {"placeholder": (39, 40)}
    assert token_identity_prompt(["a"], "x").text == "a -> a\nx"


def test_entity_description() -> None:
    prompt = entity_description_prompt()
    assert prompt.text == (
        "Syria: Country in the Middle East, Leonardo DiCaprio: American actor, Samsung: South Korean multinational "
        "major appliance and consumer electronics corporation, x"
    )
    assert prompt.spans == {"placeholder": (len(prompt.text) - 1, len(prompt.text))}
    other = entity_description_prompt([("Oslo", "city")], "thing")
    assert other.text == "Oslo: city, thing"
    assert other.spans == {"placeholder": (12, 17)}


@pytest.mark.parametrize(
    ("relation", "target", "baseline"),
    [
        ("country_currency", "The official currency of x", "The official currency of Japan"),
        ("fruit_inside_color", "On the inside, the color of x", "On the inside, the color of Japan"),
        ("work_location", "The place of work where you can usually find a x",
         "The place of work where you can usually find a Japan"),
        ("superhero_person", "Secret identity of x", "Secret identity of Japan"),
    ],
)  # fmt: skip
def test_attributes(relation: str, target: str, baseline: str) -> None:
    assert attribute_prompt(relation).text == target
    assert attribute_prompt(relation, "Japan").text == baseline


def test_every_attribute_ends_in_its_subject() -> None:
    assert len(ATTRIBUTES) == 22
    tokenizer = algorithm("byte-level BPE, GPT-2's words").tokenizer
    for relation in ATTRIBUTES:
        prompt = attribute_prompt(relation, "king")
        (start, stop) = prompt.spans["subject"]
        assert prompt.text[start:stop] == "king"
        assert stop == len(prompt.text)
        encoded = prompt.encode(tokenizer)
        assert tokenizer.decode(encoded.input_ids[slice(*encoded.spans["subject"])]) == " king"
        assert encoded.spans["subject"][1] == len(encoded.input_ids)


def test_wrong_ones_are_refused() -> None:
    with pytest.raises(InterpError, match="Did you mean 'country_currency'"):
        attribute_prompt("country_curency")
    with pytest.raises(InterpError, match="subject: expected a word"):
        attribute_prompt("country_currency", " ")
    with pytest.raises(InterpError, match="placeholder: expected a word"):
        entity_description_prompt(placeholder="")

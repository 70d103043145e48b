"""The target prompts of Patchscopes, letter by letter."""

from __future__ import annotations

import pytest

from interp.errors import InterpError
from interp.prompts import (
    ATTRIBUTES,
    IDENTITY_PROMPTS,
    TargetPrompt,
    attribute_prompt,
    entity_description_prompt,
    identity_prompt,
    repeat_chat_prompt,
    repeat_prompt,
    token_identity_prompt,
)
from interp.prompts import identity_prompt as named
from interp.prompts.chat import INSTRUCTION
from tests.interp.prompts.algorithms import algorithm
from tests.interp.prompts.test_chat import chatty


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


REPEATED = "king king\n1135 1135\nhello hello\n?"


def test_repeat_prompt() -> None:
    assert repeat_prompt().text == REPEATED
    assert repeat_prompt().spans == {"placeholder": (32, 33)}
    other = repeat_prompt(["cat", "dog"], " -> ", "; ", "xy")
    assert other.text == "cat -> cat; dog -> dog; xy"
    assert other.spans == {"placeholder": (24, 26)}
    assert repeat_prompt([]).text == "?"


def test_wrong_ones_are_refused_repeat() -> None:
    with pytest.raises(InterpError, match="expected a placeholder"):
        repeat_prompt(placeholder=" ")
    with pytest.raises(InterpError, match="several words, got one text, 'king'"):
        repeat_prompt("king")


BEFORE = (
    "<s><|system|>\nYou are a helpful assistant.</s>\n"
    "<|user|>\nI will provide you with a series of sentences. Your task is to guess the next word in the sentence. "
    "You must answer with the next word only.</s>\n<|assistant|>\nOk.</s>\n"
)


def test_chat_repeats_the_prompt_and_is_continued_there() -> None:
    tokenizer = chatty("start token")
    prompt = repeat_chat_prompt(tokenizer)
    assert prompt.text == f"{BEFORE}<|user|>\n{REPEATED}</s>\n<|assistant|>\n{REPEATED}"
    assert prompt.spans["placeholder"] == (len(prompt.text) - 1, len(prompt.text))
    ids, position = TargetPrompt(prompt, "placeholder.last").resolve(tokenizer)
    assert position == len(ids) - 1
    assert ids.count(tokenizer.bos_token_id) == 1


def test_chat_that_waits_for_its_answer() -> None:
    tokenizer = chatty("start token, trimmed")
    prompt = repeat_chat_prompt(tokenizer, ["a"], placeholder="xy ", complete=False, before=(), introduction="Repeat: ")
    assert prompt.text == "<s><|user|>\nRepeat: a a\nxy</s>\n<|assistant|>\n"
    start, stop = prompt.spans["placeholder"]
    assert (prompt.text[start:stop], start) == ("xy", prompt.text.index("xy"))
    ids, position = TargetPrompt(prompt, "placeholder.last").resolve(tokenizer)
    assert tokenizer.decode(ids[position + 1 :]) == "</s>\n<|assistant|>\n"


def test_chat_without_system_role_and_without_spans() -> None:
    assert repeat_chat_prompt(chatty("no system role"), before=INSTRUCTION[1:]).text.startswith("<s><|user|>\nI will")
    assert "placeholder" not in repeat_chat_prompt(chatty("loud"), before=(), complete=False).spans

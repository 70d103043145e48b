"""Target prompts by name: the text and the one token that is written over."""

from __future__ import annotations

import pytest

from interp.errors import InterpError
from interp.prompts import (
    ATTRIBUTES,
    IDENTITY_PROMPTS,
    TARGET_NAMES,
    Prompt,
    TargetPrompt,
    as_target_prompt,
    few_shot_prompt,
)
from tests.tiny import tiny_tokenizer


@pytest.mark.parametrize("name", sorted({*IDENTITY_PROMPTS, *ATTRIBUTES, "description"}))
def test_the_placeholder_is_the_last_token(name: str) -> None:
    tokenizer = tiny_tokenizer()
    target = as_target_prompt(name, tokenizer)
    ids, position = target.resolve(tokenizer)
    assert position == len(ids) - 1
    assert ids == tokenizer(target.prompt.text).input_ids
    assert name in TARGET_NAMES


def test_names_stand_for_the_prompts_of_the_literature() -> None:
    tokenizer = tiny_tokenizer()
    assert as_target_prompt("king", tokenizer).prompt.text == "king king\n1135 1135\nhello hello\n?"
    assert as_target_prompt("country_currency", tokenizer).prompt.text == "The official currency of x"
    described = as_target_prompt("description", tokenizer).prompt.text
    assert described.startswith("Syria: Country in the Middle East, ") and described.endswith(" corporation, x")


def test_the_chat_goes_on_from_its_placeholder() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    target = as_target_prompt("chat", tokenizer)
    ids, position = target.resolve(tokenizer)
    assert position == len(ids) - 1
    assert tokenizer.decode(ids[position:]).endswith("?")
    tokenizer.chat_template = None
    with pytest.raises(InterpError, match="no chat template"):
        as_target_prompt("chat", tokenizer)


def test_texts_prompts_and_positions() -> None:
    tokenizer = tiny_tokenizer()
    text = "The capital of x is"
    ids = tokenizer(text).input_ids
    assert as_target_prompt(text, tokenizer).resolve(tokenizer) == (ids, len(ids) - 1)
    assert as_target_prompt(text, tokenizer, 2).resolve(tokenizer) == (ids, 2)
    assert as_target_prompt(text, tokenizer, "first").resolve(tokenizer) == (ids, 0)
    marked = Prompt(text, spans={"subject": (15, 16)})
    at = marked.encode(tokenizer).spans["subject"][1] - 1
    assert as_target_prompt(marked, tokenizer).resolve(tokenizer) == (ids, at)
    assert at < len(ids) - 1
    given = TargetPrompt(text, 1)
    assert as_target_prompt(given, tokenizer) is given


def test_few_shots() -> None:
    prompt = few_shot_prompt([("France", "Paris"), ("Peru", "Lima")], " -> ", "\n", "?")
    assert prompt.text == "France -> Paris\nPeru -> Lima\n?"
    assert prompt.spans == {"placeholder": (len(prompt.text) - 1, len(prompt.text))}
    with pytest.raises(InterpError, match="placeholder"):
        few_shot_prompt([], placeholder=" ")


def test_wrong_ones_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(InterpError, match="Did you mean 'description'"):
        as_target_prompt("descriptoin", tokenizer)
    with pytest.raises(InterpError, match="expected a target prompt"):
        as_target_prompt(" ", tokenizer)
    with pytest.raises(InterpError, match="says itself that 'last' is written over"):
        as_target_prompt(TargetPrompt("a b"), tokenizer, 0)

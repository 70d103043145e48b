"""Repeat prompts, letter by letter."""

from __future__ import annotations

import pytest

from interp.errors import InterpError
from interp.prompts import TargetPrompt, repeat_chat_prompt, repeat_prompt
from interp.prompts.repeat_chat import INSTRUCTION
from tests.interp.prompts.test_chat import chatty

REPEATED = "king king\n1135 1135\nhello hello\n?"


def test_repeat_prompt() -> None:
    assert repeat_prompt().text == REPEATED
    assert repeat_prompt().spans == {"placeholder": (32, 33)}
    other = repeat_prompt(["cat", "dog"], " -> ", "; ", "xy")
    assert other.text == "cat -> cat; dog -> dog; xy"
    assert other.spans == {"placeholder": (24, 26)}
    assert repeat_prompt([]).text == "?"


def test_wrong_ones_are_refused() -> None:
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

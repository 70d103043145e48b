"""Target prompts: every way of writing them, and chats with one start token."""

from __future__ import annotations

import pytest
import torch

from interp.compat.nnterp.interventions import TargetPrompt, TargetPromptBatch, it_repeat_prompt, repeat_prompt
from interp.errors import InterpError
from tests.tiny import tiny_tokenizer

REPEATED = "king king\n1135 1135\nhello hello\n?"
TEMPLATE = (
    "<s>{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_repeat_prompt() -> None:
    assert repeat_prompt() == TargetPrompt(REPEATED, -1)
    prompt = repeat_prompt(["car", "cross"], rel=":", sep="\n\n", placeholder="*", index_to_patch=3)
    assert prompt == TargetPrompt("car:car\n\ncross:cross\n\n*", 3)


def test_batches() -> None:
    prompts = [TargetPrompt("a", -1), TargetPrompt("b", 2)]
    batch = TargetPromptBatch.from_target_prompts(prompts)
    assert batch.prompts == ["a", "b"] and batch.index_to_patch.tolist() == [-1, 2]
    assert len(batch) == 2 and list(batch) == prompts and batch[1] == prompts[1]
    assert isinstance(batch[1].index_to_patch, torch.Tensor)
    assert TargetPromptBatch.from_target_prompt(prompts[1], 3).index_to_patch.tolist() == [2, 2, 2]
    assert TargetPromptBatch.from_prompts("a", 4).index_to_patch.tolist() == [4]
    assert TargetPromptBatch.from_prompts(["a", "b"], -2).index_to_patch.tolist() == [-2, -2]
    assert TargetPromptBatch.from_prompts(["a", "b"], [1, 2]).index_to_patch.tolist() == [1, 2]
    assert TargetPromptBatch.from_prompts(["a", "b"], torch.tensor([1, 2])).index_to_patch.tolist() == [1, 2]


def test_auto_takes_a_text_too() -> None:
    one = TargetPrompt("a", 1)
    assert list(TargetPromptBatch.auto("a", 2)) == [TargetPrompt("a", -1)] * 2
    assert list(TargetPromptBatch.auto(one, 2)) == [one] * 2
    assert list(TargetPromptBatch.auto([one, "b"], 2)) == [one, TargetPrompt("b", -1)]
    batch = TargetPromptBatch.from_target_prompt(one, 2)
    assert TargetPromptBatch.auto(batch, 2) is batch


def test_errors() -> None:
    with pytest.raises(InterpError, match="for each of 3 sources, got 2"):
        TargetPromptBatch.auto(["a", "b"], 3)
    with pytest.raises(InterpError, match="expected a text"):
        TargetPromptBatch.auto(3, 3)  # type: ignore[arg-type]
    with pytest.raises(InterpError, match="expected an int"):
        TargetPromptBatch.from_prompts("a", "b")
    with pytest.raises(InterpError, match="one for each of 2 prompts, got 1"):
        TargetPromptBatch.from_prompts(["a", "b"], [1])


def chat(*turns: tuple[str, str]) -> str:
    """What the template makes of turns, written by hand, with the last one open and without the start token."""
    return "".join(f"[{role}]{text}</s>" for role, text in turns).removesuffix("</s>")


TASK = "Your task is to guess the next word in the sentence. You must answer with the next word only."


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("instructed", [True, False])
def test_chats_begin_with_one_start_token(instructed: bool, system: bool, complete: bool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    prompt = it_repeat_prompt(tokenizer, complete_prompt=complete, add_user_instr=instructed, use_system_prompt=system)
    turns = []
    if instructed:
        if system:
            turns.append(("system", "You are a helpful assistant."))
        turns.append(("user", f"I will provide you with a series of sentences. {TASK}"))
        turns += [("assistant", "Ok."), ("user", REPEATED)]
    elif system:
        turns += [("system", f"The user will provide you with a sentence. {TASK}"), ("user", REPEATED)]
    else:
        request = "Guess the next word in the following sentence (answer only the next word): "
        turns.append(("user", request + REPEATED))
    turns.append(("assistant", REPEATED if complete else ""))
    assert prompt == TargetPrompt(chat(*turns), -1)
    ids = tokenizer(prompt.prompt).input_ids
    whole = tokenizer(TEMPLATE[:3] + chat(*turns), add_special_tokens=False).input_ids
    assert ids == whole and ids.count(1) == 1


def test_a_start_token_that_the_tokenizer_leaves_to_the_template_stays() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.backend_tokenizer.post_processor = None
    prompt = it_repeat_prompt(tokenizer, ["cat"], " -> ", "\n", "?")
    assert prompt.prompt.startswith("<s>[system]") and prompt.prompt.endswith("[assistant]cat -> cat\n?")
    assert tokenizer(prompt.prompt).input_ids.count(1) == 1

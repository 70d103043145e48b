"""Target prompts and their positions against tokens counted by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.batching import left_padded
from interp.errors import InterpError
from interp.positions import Position
from interp.prompts import (
    ATTRIBUTES,
    IDENTITY_PROMPTS,
    TARGET_NAMES,
    Prompt,
    ResolvedTargets,
    TargetPrompt,
    TargetPromptBatch,
    as_target_prompt,
    few_shot_prompt,
    repeat_prompt,
)
from tests.interp.prompts.algorithms import algorithm
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return algorithm("byte-level BPE, GPT-2's words").tokenizer


def test_text_is_replaced_at_its_last_token(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, position = TargetPrompt("king king\n?").resolve(tokenizer)
    assert ids == tokenizer("king king\n?")["input_ids"]
    assert position == len(ids) - 1
    assert tokenizer.decode([ids[position]]) == "?"


@pytest.mark.parametrize(
    ("position", "index"),
    [("first", 0), (0, 0), (2, 2), (-2, -2), ("-1", -1), ("1:2", 1), (Position.parse("last"), -1)],
)
def test_position_is_any_spelling_of_one_token(
    tokenizer: PreTrainedTokenizerFast, position: str | int | Position, index: int
) -> None:
    ids, found = TargetPrompt("king king\n?", position).resolve(tokenizer)
    assert found == index % len(ids)


def test_position_in_a_span(tokenizer: PreTrainedTokenizerFast) -> None:
    text = 'Deutsch: "Buch" - Italiano: "'
    marked = Prompt(text, spans={"query": (10, 14)})
    ids, last = TargetPrompt(marked, "query.last").resolve(tokenizer)
    before = len(tokenizer('Deutsch: "')["input_ids"])
    word = tokenizer("Buch", add_special_tokens=False)["input_ids"]
    assert ids[before : before + len(word)] == word
    assert last == before + len(word) - 1
    assert TargetPrompt(marked, "query.first").resolve(tokenizer)[1] == before


def test_several_tokens_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InterpError, match="position 'all': expected one token to replace, got 5"):
        TargetPrompt("king king\n?", "all").resolve(tokenizer)
    with pytest.raises(InterpError, match="position 'fifth': of a span, say which tokens"):
        TargetPrompt("king", "fifth")
    with pytest.raises(InterpError, match="no span 'query'"):
        TargetPrompt("king", "query.last").resolve(tokenizer)


def test_batch_resolves_each_prompt_by_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    marked = Prompt('Deutsch: "Buch" - Italiano: "', spans={"query": (10, 14)})
    batch = TargetPromptBatch(
        [TargetPrompt(repeat_prompt(), "placeholder.last"), TargetPrompt(marked, "query.last"), TargetPrompt("king", 1)]
    )
    resolved = batch.resolve(tokenizer)
    assert resolved.input_ids == [tokenizer(prompt.prompt.text)["input_ids"] for prompt in batch]
    assert resolved.positions == [target.resolve(tokenizer)[1] for target in batch]
    replaced = [tokenizer.decode([ids[at]]) for ids, at in zip(resolved.input_ids, resolved.positions, strict=True)]
    assert replaced == ["?", "Buch", "king"]
    assert (len(batch), batch[1].prompt) == (3, marked)


def test_columns_are_the_positions_after_left_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    resolved = TargetPromptBatch.of(["king king\n1135 1135\n?", "hello", "king hello"], [3, -1, 0]).resolve(tokenizer)
    inputs = left_padded(resolved.input_ids, tokenizer.pad_token_id, torch.device("cpu"))
    rows = torch.arange(3)
    columns = torch.tensor(resolved.columns)
    assert inputs["position_ids"][rows, columns].tolist() == resolved.positions
    assert inputs["attention_mask"][rows, columns].tolist() == [1, 1, 1]
    assert inputs["input_ids"][rows, columns].tolist() == [
        ids[at] for ids, at in zip(resolved.input_ids, resolved.positions, strict=True)
    ]


def test_one_position_serves_all_prompts(tokenizer: PreTrainedTokenizerFast) -> None:
    resolved = TargetPromptBatch.of(["king hello king", "hello"], "first").resolve(tokenizer)
    assert resolved.positions == [0, 0]
    last = TargetPromptBatch.of(["king hello king", Prompt("hello")]).resolve(tokenizer)
    assert last.positions == [len(ids) - 1 for ids in last.input_ids]


def test_repeated_prompt_is_tokenized_once(tokenizer: PreTrainedTokenizerFast) -> None:
    calls = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer, name)

        def __call__(self, *arguments: object, **options: object) -> object:
            calls.append(arguments)
            return tokenizer(*arguments, **options)

    resolved = TargetPromptBatch.repeated(TargetPrompt("king\n?"), 4).resolve(Counting())
    ids = tokenizer("king\n?")["input_ids"]
    assert resolved == ResolvedTargets([ids] * 4, [len(ids) - 1] * 4)
    assert len(calls) == 1


def test_wrong_batches_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InterpError, match="at least one target prompt"):
        TargetPromptBatch([])
    with pytest.raises(InterpError, match="at least one target prompt"):
        TargetPromptBatch.repeated(TargetPrompt("a"), 0)
    with pytest.raises(InterpError, match="one for each of 2 prompts, got 3"):
        TargetPromptBatch.of(["a", "b"], [0, 1, 2])
    with pytest.raises(InterpError, match="got one text, 'king'"):
        TargetPromptBatch.of("king")
    with pytest.raises(InterpError, match="target prompt 1: position '9' is out of range"):
        TargetPromptBatch.of(["king", "hello"], [0, 9]).resolve(tokenizer)


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

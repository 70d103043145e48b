"""What may be given as prompts: encodings are the ids that they hold, without padding; what is no list is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BatchEncoding

from interp.errors import InterpError
from interp.prompts import Prompt, TargetPromptBatch
from interp.prompts.given import is_ids, listed, token_ids
from tests.tiny import tiny_tokenizer

TEXTS = ["The quick brown fox", "cat", "The lazy dog jumps over"]
IDS: list[list[int]] = tiny_tokenizer()(TEXTS)["input_ids"]
CHAT = [{"role": "user", "content": "king"}]


def padded(side: str, kind: str | None) -> BatchEncoding:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    return tokenizer(TEXTS, padding=True, return_tensors=kind)


def chat_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
    return tokenizer


@pytest.mark.parametrize("kind", [None, "pt", "np"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_an_encoding_is_its_prompts_without_padding(side: str, kind: str | None) -> None:
    encoding = padded(side, kind)
    assert listed(encoding) == listed(dict(encoding)) == token_ids(encoding) == IDS
    assert listed({**encoding, "token_type_ids": None}) == IDS


@pytest.mark.parametrize("kind", [None, "pt", "np"])
def test_an_encoding_of_one_prompt(kind: str | None) -> None:
    one = tiny_tokenizer()(TEXTS[0], return_tensors=kind)  # (1, length) as tensors, (length,) as a list
    assert listed(one) == IDS[:1]
    flat = BatchEncoding({name: torch.as_tensor(values).flatten() for name, values in one.items()})
    assert listed(flat) == IDS[:1]
    several = [tiny_tokenizer()(text, return_tensors=kind) for text in TEXTS]
    assert listed(several) == IDS
    assert listed([each["input_ids"] for each in several]) == IDS


def test_an_encoding_without_padding_is_ragged() -> None:
    assert listed(tiny_tokenizer()(TEXTS)) == IDS
    assert listed(tiny_tokenizer()(TEXTS, return_offsets_mapping=True, return_special_tokens_mask=True)) == IDS


def test_what_a_chat_template_returns() -> None:
    tokenizer = chat_tokenizer()
    wanted = tokenizer.apply_chat_template(CHAT, return_dict=False)
    assert listed(tokenizer.apply_chat_template(CHAT)) == [wanted]
    assert listed(tokenizer.apply_chat_template(CHAT, return_tensors="pt")) == [wanted]
    assert listed(tokenizer.apply_chat_template([CHAT, CHAT])) == [wanted, wanted]


def test_what_else_is_a_list() -> None:
    prompt = Prompt("cat")
    assert listed("cat") == ["cat"] and listed(prompt) == [prompt]
    for texts in (TEXTS, tuple(TEXTS), iter(TEXTS), (text for text in TEXTS), {1: TEXTS[0]}.values()):
        found = listed(texts)
        assert found == TEXTS[: len(found)] and found
    assert listed(np.array(TEXTS)) == listed(pd.Series(TEXTS)) == listed(pd.DataFrame({"text": TEXTS})["text"]) == TEXTS
    assert listed(np.array("cat")) == ["cat"]
    assert listed([np.array(ids) for ids in IDS]) == listed(pd.Series(IDS)) == IDS
    assert listed(torch.tensor(IDS[:1])) == IDS[:1]
    assert is_ids(listed(torch.tensor(IDS[0]))) and is_ids(range(3)) and not is_ids([True]) and not is_ids([])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"en": "book", "fr": "livre"}, r"a mapping with the keys 'en', 'fr'\. .*list\(texts\.values\(\)\)"),
        ({"prompt": TEXTS}, "a mapping with the keys 'prompt'"),
        (CHAT[0], "A chat becomes a prompt by `interp.prompts.chat_prompt`"),
        (CHAT, r"'role', 'content' among them \(entry 0\)\. A chat becomes a prompt"),
        ({"input_ids": IDS, "pixel_values": torch.zeros(1)}, "an encoding of text.* got one with 'pixel_values' too"),
        ({"input_ids": "cat"}, r"`input_ids` as \(prompt, token\).*got 'cat'"),
        ({"input_ids": None}, r"`input_ids` as \(prompt, token\)"),
        ({"input_ids": IDS, "attention_mask": [[1]] * 3}, "`attention_mask` as .*an entry for each"),
        ({"input_ids": IDS[:1], "attention_mask": torch.ones(1, 1, 3, 3)}, "`attention_mask` as "),
        ({"input_ids": [[1, 5, 6]], "attention_mask": [[1, 0, 1]]}, "of prompt 0 has a hole at token 1"),
        ({"input_ids": [[1, 5], [1, 6]], "attention_mask": [[1, 1], [0, 0]]}, "of prompt 1 shows none of its 2 tokens"),
        ({"input_ids": [[1, 5]], "attention_mask": [[1, 2]]}, r"of 0 and 1, got \[1, 2\]"),
        ({"input_ids": [[1, 5]], "token_type_ids": [[0, 1]]}, "`token_type_ids` other than 0 in prompt 0"),
        ({"input_ids": [[1, 5]], "position_ids": [[1, 2]]}, "`position_ids` that count from 0"),
        (pd.DataFrame({"text": TEXTS, "en": 1}), r"a table \(DataFrame\) with the columns 'text', 'en'.*prompts=table"),
        (set(TEXTS), "a set, which has no order"),
        (frozenset(TEXTS), "a frozenset, which has no order"),
        ({"a": 1}.keys(), "a dict_keys, which has no order"),
        (None, "got None"),
        (5, "got 5"),
        (2.5, "got 2.5"),
        (True, "got True"),
        (torch.tensor(5), "got 5"),
        (b"cat", "got b'cat'"),
        ([b"cat"], r"got b'cat' among them \(entry 0\)"),
        (["cat", None], r"got None among them \(entry 1\)"),
        (["cat", {"dog"}], "a set among them .entry 1., which has no order"),
        (["cat", pd.DataFrame({"text": TEXTS})], "a table .* among them"),
        ([{"text": "cat"}], r"a mapping with the keys 'text' among them \(entry 0\)"),
        (object(), "expected texts, Prompts or lists of token ids, got <object"),
    ],
)
def test_what_is_refused(given: Any, message: str) -> None:
    with pytest.raises(InterpError, match=r"^prompts: expected|^prompts: the `attention_mask`") as error:
        listed(given)
    assert error.match(message)


def test_ids_alone() -> None:
    for given, message in ((TEXTS, "expected the token ids of a prompt, got 'The quick"), (IDS[0], r"input_ids\[0\]")):
        with pytest.raises(InterpError, match=message):
            token_ids(given)
    assert token_ids(np.array(IDS[:1])) == IDS[:1] and token_ids([]) == [] and token_ids([[]]) == [[]]


def test_target_prompts_of_a_batch() -> None:
    assert len(TargetPromptBatch.of(pd.Series(TEXTS))) == 3  # type: ignore[arg-type]
    for given in ({"a": "cat"}, None, 5, {"cat"}):
        with pytest.raises(InterpError, match="prompts: expected"):
            TargetPromptBatch.of(given)  # type: ignore[arg-type]
    with pytest.raises(InterpError, match="target prompt: expected a text or a Prompt, got 5"):
        TargetPromptBatch.of([5])  # type: ignore[list-item]

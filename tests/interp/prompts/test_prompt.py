"""Prompts with named answers against plain loops over words and sets of tokens."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.prompts import AnswerTokens, Prompt, Target, encode
from tests.interp.prompts.algorithms import algorithm

GPT2 = "byte-level BPE, GPT-2's words"
LLAMA2 = "Metaspace BPE, space at the first word"
QUESTION = 'Français: "livre" - English: "'


def first_tokens(name: str, *words: str) -> tuple[int, ...]:
    """The first token of each word behind nothing and behind a space, by the slow algorithm."""
    made = algorithm(name)
    readings = [made.pieces(gap, word) for word in words for gap in ("", " ")]
    tokens = [reading[0] for reading in readings if reading and reading[0] not in ("Ġ", "▁")]
    return tuple(dict.fromkeys(made.tokenizer.get_vocab()[token] for token in tokens))


@pytest.mark.parametrize("name", [GPT2, LLAMA2, "Unigram"])
def test_targets_count_the_first_tokens_of_their_words(name: str) -> None:
    tokenizer = algorithm(name).tokenizer
    prompt = Prompt.from_strings(QUESTION, {"en": ["book", "king"], "de": "Buch", "fr": ["livre", 7]}, tokenizer)
    assert prompt.text == QUESTION
    assert prompt.target_tokens == {
        "en": first_tokens(name, "book", "king"),
        "de": first_tokens(name, "Buch"),
        "fr": (*first_tokens(name, "livre"), 7),
    }
    assert {name: target.words for name, target in prompt.targets.items()} == {
        "en": ("book", "king"),
        "de": ("Buch",),
        "fr": ("livre",),
    }


def test_targets_without_names_are_one_target() -> None:
    tokenizer = algorithm(GPT2).tokenizer
    assert Prompt.from_strings("a", "king", tokenizer).target_tokens == {"target": first_tokens(GPT2, "king")}
    both = Prompt.from_strings("a", ["king", "hello"], tokenizer)
    assert both.target_tokens == {"target": first_tokens(GPT2, "king", "hello")}
    assert Prompt.from_strings("a", 5, tokenizer).target_tokens == {"target": (5,)}
    king = first_tokens(GPT2, "king")
    assert Prompt.from_strings("a", ["king", king[0], "king"], tokenizer).target_tokens == {"target": king}


def test_policy_decides_what_counts() -> None:
    tokenizer = algorithm(LLAMA2).tokenizer
    vocabulary = tokenizer.get_vocab()
    exact = Prompt.from_strings("a", "king", tokenizer, policy="exact")
    assert exact.target_tokens["target"] == (vocabulary["king"], vocabulary["▁king"])
    prefixes = Prompt.from_strings("a", "king", tokenizer, policy="all_prefixes").target_tokens["target"]
    written = {entry for entry in vocabulary if entry != "▁" and ("king".startswith(entry.removeprefix("▁")))}
    assert set(prefixes) == {vocabulary[entry] for entry in written}
    with pytest.raises(InterpError, match="'世' has no token by the policy 'exact'"):
        Prompt.from_strings("a", "世", tokenizer, policy="exact")


def test_other_targets_keep_text_and_spans() -> None:
    tokenizer = algorithm(GPT2).tokenizer
    prompt = Prompt("king king", spans={"query": (0, 4)}, add_special_tokens=False)
    answered = prompt.with_targets({"de": "Buch"}, AnswerTokens(tokenizer))
    assert (answered.text, answered.spans, answered.add_special_tokens) == ("king king", {"query": (0, 4)}, False)
    assert answered.target_tokens == {"de": first_tokens(GPT2, "Buch")}
    assert prompt.targets == {}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from("abcde"), st.frozensets(st.integers(0, 8), min_size=1), max_size=5), st.data())
def test_collisions_are_the_tokens_of_two_targets(counted: dict[str, frozenset[int]], data: st.DataObject) -> None:
    prompt = Prompt("x", {name: Target((), tuple(sorted(ids))) for name, ids in counted.items()})
    ignored = data.draw(st.sets(st.sampled_from(sorted(counted)))) if counted else set()
    expected = {
        (one, other): counted[one] & counted[other]
        for one, other in itertools.combinations(counted, 2)
        if counted[one] & counted[other] and not {one, other} & ignored
    }
    found = prompt.collisions(ignore=ignored)
    assert {collision.targets: set(collision.token_ids) for collision in found} == expected
    assert prompt.has_collisions(ignore=ignored) == bool(expected)
    assert all(str(token) in str(collision) for collision in found for token in collision.token_ids)


def test_collision_tells_shared_bytes_from_shared_words() -> None:
    tokenizer = algorithm(LLAMA2).tokenizer  # has neither character
    prompt = Prompt.from_strings("a", {"zh": "世", "ja": ["丙"], "en": ["king"], "also": ["king", "世"]}, tokenizer)
    byte = tokenizer.get_vocab()["<0xE4>"]
    king = first_tokens(LLAMA2, "king")
    assert prompt.targets["zh"].partial == prompt.targets["also"].partial == {byte: b"\xe4"}
    assert prompt.targets["en"].partial == {}
    chinese, mixed, other, english = prompt.collisions()
    assert (chinese.targets, chinese.token_ids, chinese.partial) == (("zh", "ja"), (byte,), {byte: b"\xe4"})
    assert str(chinese) == (
        f"'zh' and 'ja' share 1 token {byte}; only a part of a character's bytes, so no evidence about a word: "
        f"{byte}: E4"
    )
    assert [mixed.targets, other.targets] == [("zh", "also"), ("ja", "also")]
    assert (english.targets, english.token_ids, english.partial) == (("en", "also"), king, {})
    assert str(english) == f"'en' and 'also' share {len(king)} tokens {', '.join(map(str, king))}"
    assert prompt.collisions(ignore="also") == [chinese]
    assert not prompt.has_collisions(ignore=["also", "ja"])


def test_ignoring_an_unknown_target_is_refused() -> None:
    prompt = Prompt("a", {"english": Target((), (1,))})
    with pytest.raises(InterpError, match=r"no target is called 'englisch'\. Did you mean 'english'"):
        prompt.collisions(ignore="englisch")


@pytest.mark.parametrize("wrong", [[], [1.5], [-1], [True], [["king"]]])
def test_targets_that_are_no_words_are_refused(wrong: list) -> None:
    with pytest.raises(InterpError, match="target 'en': expected"):
        Prompt.from_strings("a", {"en": wrong}, algorithm(GPT2).tokenizer)


def test_word_without_tokens_is_refused() -> None:
    with pytest.raises(InterpError, match="'книга' has no token"):
        Prompt.from_strings("a", {"ru": "книга"}, algorithm("WordPiece").tokenizer)


def test_encoding_gives_tokens_and_spans() -> None:
    tokenizer = algorithm(GPT2).tokenizer
    prompt = Prompt(QUESTION, spans={"query": (11, 16)})
    assert prompt.encode(tokenizer) == encode(tokenizer, QUESTION, {"query": (11, 16)})
    assert prompt.encode(tokenizer).input_ids == tokenizer(QUESTION)["input_ids"]
    start, stop = prompt.encode(tokenizer).spans["query"]
    assert tokenizer.decode(prompt.encode(tokenizer).input_ids[start:stop]) == "livre"


def test_prompt_with_its_own_special_tokens_is_given_no_other() -> None:
    tokenizer = algorithm(GPT2).tokenizer
    written = Prompt("<s>king</s>king", spans={"first": (3, 7)}, add_special_tokens=False).encode(tokenizer)
    king = tokenizer("king", add_special_tokens=False)["input_ids"]
    assert written.input_ids == [tokenizer.bos_token_id, *king, tokenizer.eos_token_id, *king]
    assert written.spans == {"first": (1, 1 + len(king))}
    with pytest.raises(InterpError, match=r"use `interp\.prompts\.chat_prompt`"):
        Prompt("<s>king").encode(tokenizer)


def test_nothing_of_it_needs_torch() -> None:
    code = """
import sys
import interp.prompts
for name in interp.prompts.__all__:
    getattr(interp.prompts, name)
assert set(interp.prompts.__all__) <= set(dir(interp.prompts))
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_is_no_attribute() -> None:
    import interp.prompts

    with pytest.raises(AttributeError, match="no attribute 'chat_prompts'"):
        interp.prompts.chat_prompts  # noqa: B018

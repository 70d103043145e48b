"""Words found in texts against a search of every substring, and their tokens against the tokens' bytes."""

from __future__ import annotations

import unicodedata

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from interp.errors import InterpError
from interp.prompts import Prompt, encode, find_word
from tests.interp.prompts.algorithms import MAKERS, algorithm
from tests.interp.prompts.scripts import LETTERS, words_of
from tests.interp.prompts.test_encoding import LOSSLESS, tokens_by_bytes

ACUTE = "\N{COMBINING ACUTE ACCENT}"
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ーｰ々]"


def found(text: str, word: str | list[str], **rules: object) -> list[tuple[int, str]]:
    return [(one.start, text[one.start : one.stop]) for one in find_word(text, word, **rules)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "word", "places"),
    [
        ("在法国的首都，法国人", "法国", [1, 7]),
        ("東京はフランスより大きい", "フランス", [3]),
        ("本を読みます", "読み", [2]),
        ("프랑스의 수도는", "프랑스", [0]),  # with its particle
        ("대한민국에서", "대한민국", [0]),
        ("เมืองหลวงของไทยคือ", "ไทย", [12]),
        ("ເມືອງຫຼວງຂອງລາວແມ່ນ", "ລາວ", [12]),
        ("រដ្ឋធានីនៃបារាំងគឺ", "បារាំង", [10]),
        ("ပြင်သစ်နိုင်ငံ", "ပြင်သစ်", [0]),
        ("我的iPhone手机", "手机", [8]),
        ("我的iPhone手机", "iPhone", [2]),
        ("the_France_flag", "France", [4]),
        ("l'Italie, (Italie) Italie's", "Italie", [2, 11, 19]),
        ("столица Франции", "Франции", [8]),
        ("cafés cafe café", "cafe", [6]),  # neither the word with an ending nor the letter with an accent
        (f"cafe{ACUTE}s cafe{ACUTE}", "café", [7]),
        ("Việt Nam", unicodedata.normalize("NFD", "Việt"), [0]),
        (unicodedata.normalize("NFD", "프랑스의"), "프랑스", [0]),
        ("각", "가", []),
        ("ไม้", "ไม", []),  # a tone mark is a part of its letter
        ("tax excise", "x", []),
        ("👩\u200d👧 👩", "👩", [4]),  # a joiner makes one picture of two
        ("👩\u200d👧 👧", "👧", [4]),
        ("👍🏽 👍", "👍", [3]),
        ("👩\u200d👧 👩", "👩\u200d👧", [0]),
        ("x1 1x x", "x", [6]),
        ("C++ and C", "C++", [0]),
        ("Ｆｒａｎｃｅ ﬁsh", "France", [0]),
        ("Ｆｒａｎｃｅ ﬁsh", "fish", [7]),
        ("fish, ﬁsh", "fish", [0]),  # what is only compatible is not looked at where there is the same
        ("New\N{NO-BREAK SPACE}York", "New York", [0]),
        ("New York", "New_York", [0]),
        ("Apple", "apple", []),
    ],
)
def test_a_word_is_found_by_its_characters(text: str, word: str, places: list[int]) -> None:
    assert [one.start for one in find_word(text, word)] == places
    for _, written in found(text, word):
        same = unicodedata.normalize("NFKC", written).replace("_", " ")
        assert same == unicodedata.normalize("NFKC", word).replace("_", " ")


def test_endings_and_prefixes_are_read_where_they_are_asked_for() -> None:
    assert found("des Buches", "Buch") == []
    assert found("des Buches", "Buch", boundary="start") == [(4, "Buch")]
    assert found("das Notizbuch", "buch", boundary="start") == []
    assert found("das Notizbuch", "buch", boundary="none") == [(9, "buch")]
    assert found("Nigeria, Niger", "Niger", boundary="none") == [(9, "Niger")]  # a word of its own goes first
    assert found("الكتاب", "كتاب", boundary="none") == [(2, "كتاب")]
    assert found("किताबें", "किताब", boundary="start") == [(0, "किताब")]
    assert found(f"cafe{ACUTE}s", "café", boundary="start") == [(0, f"cafe{ACUTE}")]
    assert found("cafés", "caf", boundary="start") == [(0, "caf")]
    assert found("café", "cafe", boundary="none") == []  # never a letter without its accent


def test_case_is_told_apart_unless_asked_otherwise() -> None:
    assert found("STRASSE, Straße", "straße", ignore_case=True) == [(0, "STRASSE"), (9, "Straße")]
    assert found("ΟΔΟΣ", "οδος", ignore_case=True) == [(0, "ΟΔΟΣ")]
    assert found(f"CAFE{ACUTE}", "café", ignore_case=True) == [(0, f"CAFE{ACUTE}")]


def test_several_forms_are_found_in_the_order_of_the_text() -> None:
    assert found("В Москве, из Москвы", ["Москвы", "Москве"]) == [(2, "Москве"), (13, "Москвы")]


def by_every_substring(text: str, word: str) -> list[tuple[int, int]]:
    """Canonically equal substrings that split no letter and, in scripts with spaces, no word."""
    same = unicodedata.normalize("NFD", word)
    places = []
    for start in range(len(text)):
        for stop in range(start + 1, len(text) + 1):
            if unicodedata.normalize("NFD", text[start:stop]) != same:
                continue
            after = unicodedata.normalize("NFD", text[stop:])[:1]
            if after and (unicodedata.combining(after) or regex.match(r"[\u1160-\u11ff]", after)):
                continue
            inside = rf"(?:(?!{UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])"
            before = regex.sub(r"[^\P{M}\p{ccc=0}]+$", "", text[:start])
            body = regex.sub(r"[^\P{M}\p{ccc=0}]+$", "", text[:stop])
            begins = not (regex.search(f"{inside}$", before) and regex.match(inside, text[start:]))
            ends = not (regex.search(f"{inside}$", body) and regex.match(inside, text[stop:]))
            if begins and ends:
                places.append((start, stop))
    return places


@pytest.mark.parametrize("script", [script for script in LETTERS if script != "emoji"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_words_of_every_script_against_every_substring(script: str, data: st.DataObject) -> None:
    word = data.draw(words_of(script).filter(lambda word: not unicodedata.combining(word[0])))
    other = words_of(data.draw(st.sampled_from([script, "Latin", "Han"])))
    pieces = st.one_of(st.just(word), st.just(unicodedata.normalize("NFD", word)), other, st.sampled_from(" _-'、"))
    text = "".join(data.draw(st.lists(pieces, min_size=1, max_size=6)))
    expected = by_every_substring(text, word)
    if expected:  # else characters that are only compatible are looked at too
        assert [(one.start, one.stop) for one in find_word(text, word)] == expected


SENTENCES = {
    "Han": ("书在桌子上，国王在看书。", "国王"),
    "Han, bytes": ("我在瑞士的首都", "瑞士"),  # letters that no vocabulary here has
    "Kana": ("こんにちは世界 コンピューターは", "コンピューター"),
    "Hangul": ("왕은 책을 읽습니다", "책"),
    "Thai": ("และกษัตริย์อ่านหนังสือ", "กษัตริย์"),
    "accents": (f"a nai{ACUTE}ve book, fac\N{COMBINING CEDILLA}ade", "façade"),
    "underscore": ("the_king_reads", "king"),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("case", SENTENCES)
def test_the_tokens_of_a_word_give_it_back(name: str, case: str) -> None:
    text, word = SENTENCES[case]
    tokenizer = algorithm(name).tokenizer
    prompt = Prompt(text).marked("subject", word)
    encoded = prompt.encode(tokenizer)
    start, stop = encoded.spans["subject"]
    if name in LOSSLESS:  # every byte of the text has its token
        assert (start, stop) == tokens_by_bytes(name, encoded.input_ids, text, *prompt.spans["subject"])
    own = encoded.input_ids[start:stop]
    if tokenizer.unk_token_id in own:  # a vocabulary that cannot write the word
        assert word not in tokenizer.decode(encoded.input_ids)
        return
    assert seen(tokenizer, word) in seen(tokenizer, tokenizer.decode(own))


def seen(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """A text as a tokenizer sees it, without spaces."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    text = normalizer.normalize_str(text) if normalizer else text
    return "".join(unicodedata.normalize("NFC", text).replace("▁", " ").split())


def test_a_prompt_marks_the_occurrence_that_is_asked_for() -> None:
    prompt = Prompt("法国人说法国", spans={"whole": (0, 6)})
    assert prompt.marked("subject", "法国").spans == {"whole": (0, 6), "subject": (4, 6)}
    assert prompt.marked("subject", "法国", occurrence="first").spans["subject"] == (0, 2)
    tokenizer = algorithm("byte-level BPE, many scripts").tokenizer
    encoded = encode(tokenizer, prompt.text, {"subject": (4, 6)})
    assert encoded.spans["subject"][1] == len(encoded.input_ids)


def test_what_cannot_be_found_is_said() -> None:
    with pytest.raises(
        InterpError, match=r"'Buch' is no word of 'des Buches'. It stands there as 'Buches': boundary='start'"
    ):
        Prompt("des Buches").marked("subject", "Buch")
    with pytest.raises(InterpError, match=r"'paris' is no word of 'In Paris'. It stands there as 'Paris': ignore_case"):
        Prompt("In Paris").marked("subject", "paris")
    with pytest.raises(InterpError, match=r"'Rom' is no word of 'In Paris'\.$"):
        Prompt("In Paris").marked("subject", "Rom")
    with pytest.raises(InterpError, match=r"occurrence: expected one of first, last, got 'lats'. Did you mean 'last'"):
        Prompt("In Paris").marked("subject", "Paris", occurrence="lats")
    with pytest.raises(InterpError, match="boundary: expected one of both, start, none, got 'begin'"):
        find_word("In Paris", "Paris", boundary="begin")
    for blank in (" ", "", []):
        with pytest.raises(InterpError, match="expected a word to find"):
            find_word("In Paris", blank)

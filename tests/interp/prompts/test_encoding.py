"""Prompts and spans against token ranges that are counted in bytes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from interp.errors import InterpError
from interp.prompts import encode
from tests.interp.prompts.algorithms import MAKERS, algorithm, words

LOSSLESS = [name for name in MAKERS if "BPE" in name]
slow = settings(max_examples=60, deadline=None, derandomize=True)


def tokens_by_bytes(name: str, ids: list[int], text: str, start: int, stop: int) -> tuple[int, int]:
    """The tokens that overlap characters `start` to `stop`, by laying the bytes of the tokens end to end."""
    made = algorithm(name)
    wanted = (len(text[:start].encode()), len(text[:stop].encode()))
    pieces = [made.text_of(token) or b"" for token in made.tokenizer.convert_ids_to_tokens(ids)[1:]]
    at = len(text.encode()) - sum(len(piece) for piece in pieces)  # -1 where the tokenizer put a space before the text
    assert at in (0, -1)
    assert b"".join(pieces)[-at:] == text.encode()
    found = []
    for index, piece in enumerate(pieces, start=1):  # 0 is <s>
        if at < wanted[1] and at + len(piece) > wanted[0]:
            found.append(index)
        at += len(piece)
    return found[0], found[-1] + 1


@pytest.mark.parametrize("name", LOSSLESS)
@slow
@given(
    parts=st.lists(words(), min_size=1, max_size=4), chosen=st.integers(0, 3), closing=st.sampled_from(['"', " ", "\n"])
)
def test_span_is_the_tokens_that_overlap_it(name: str, parts: list[str], chosen: int, closing: str) -> None:
    chosen %= len(parts)
    before = "".join(f'Français: "{part}"\n' for part in parts[:chosen]) + 'Deutsch: "'
    text = before + parts[chosen] + closing + "".join(f"- {part}" for part in parts[chosen + 1 :])
    assume(parts[chosen].replace("▁", " ").strip() == parts[chosen])
    tokenizer = algorithm(name).tokenizer
    assume("▁" not in text or "Metaspace" not in name)  # there the mark is read as a space
    span = (len(before), len(before) + len(parts[chosen]))
    encoded = encode(tokenizer, text, {"query": span, "text": (0, len(text.rstrip()))})
    assert encoded.input_ids == tokenizer(text)["input_ids"]
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert encoded.spans["query"] == tokens_by_bytes(name, encoded.input_ids, text, *span)
    assert encoded.spans["text"] == tokens_by_bytes(name, encoded.input_ids, text, 0, len(text.rstrip()))


def test_span_covers_a_token_that_it_shares() -> None:
    tokenizer = algorithm("byte-level BPE, Llama 3's words").tokenizer
    text = '\n"Buch"\n'
    encoded = encode(tokenizer, text, {"query": (2, 6)})
    start, stop = encoded.spans["query"]
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids)[start:stop] == ['"Buch']


def test_word_that_occurs_before_is_not_mistaken() -> None:
    tokenizer = algorithm("WordPiece").tokenizer
    text = 'Deutsch: "Buch" - Italiano: "libro" Deutsch: "Buch"'
    encoded = encode(tokenizer, text, {"first": (10, 14), "last": (text.rindex("Buch"), text.rindex("Buch") + 4)})
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    for name, place in (("first", tokens.index("buch")), ("last", len(tokens) - 1 - tokens[::-1].index("buch"))):
        assert encoded.spans[name] == (place, place + 1)


def test_text_with_composed_letters_keeps_its_offsets() -> None:
    tokenizer = algorithm("Unigram").tokenizer  # composes and widens by NFKC: the ligature becomes two letters
    text = "ﬁ e\N{COMBINING ACUTE ACCENT} lo fox"
    encoded = encode(tokenizer, text, {"query": (len(text) - 3, len(text))})
    start, stop = encoded.spans["query"]
    assert tokenizer.decode(encoded.input_ids[start:stop]).strip() == "fox"
    assert stop == len(encoded.input_ids)


@pytest.mark.parametrize("span", [(3, 3), (4, 2), (-1, 2), (0, 6), (5, 6)])
def test_empty_or_outside_span_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(InterpError, match="span 'query': expected a non-empty range inside the 5 characters"):
        encode(algorithm("WordPiece").tokenizer, "hello", {"query": span})


def test_span_of_dropped_characters_is_refused() -> None:
    with pytest.raises(InterpError, match="no token of their own"):
        encode(algorithm("WordPiece").tokenizer, "hello   king", {"query": (6, 7)})


def test_end_token_is_left_out_and_start_token_kept() -> None:
    made = algorithm("byte-level BPE, GPT-2's words").tokenizer
    backend = type(made.backend_tokenizer).from_str(made.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    closing = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert closing("king")["input_ids"] == [*made("king")["input_ids"], 2]
    assert encode(closing, "king").input_ids == made("king")["input_ids"]
    # an end token that the text itself has is the text's
    assert encode(closing, "king</s>").input_ids == [*made("king")["input_ids"], 2]


def test_doubled_start_token_is_refused() -> None:
    with pytest.raises(InterpError, match="begins with '<s>', which the tokenizer adds itself"):
        encode(algorithm("Unigram").tokenizer, "<s>hello")


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InterpError, match="surrogate"):
        encode(algorithm("WordPiece").tokenizer, "hello \ud83d")


def test_slow_tokenizer_encodes_and_says_what_it_lacks(slow_tokenizer: PreTrainedTokenizerBase) -> None:
    assert slow_tokenizer.convert_ids_to_tokens(encode(slow_tokenizer, "ab: a").input_ids) == list("ab: a")
    with pytest.raises(InterpError, match=r"LetterTokenizer reports no character offsets.*'query'"):
        encode(slow_tokenizer, "ab", {"query": (0, 1)})
    with pytest.raises(InterpError, match="at least one token"):
        encode(slow_tokenizer, "")


@pytest.mark.parametrize("name", [name for name in MAKERS if "every start" in name or "Llama 2" in name])
def test_added_space_is_no_part_of_the_first_word(name: str) -> None:
    tokenizer = algorithm(name).tokenizer
    encoded = encode(tokenizer, "ß ß", {"query": (0, 1), "spaced": (1, 3), "all": (0, 3)})
    pieces = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    assert pieces[1] in ("▁", "Ġ")  # the tokenizer's own, with the offsets of the first letter
    assert encoded.spans["query"] == (2, 4)  # two bytes
    assert encoded.spans["all"] == (2, len(pieces))
    assert "".join(pieces[slice(*encoded.spans["spaced"])]) == "".join(pieces[4:])  # a space that the text has
    assert pieces[4][0] in "▁Ġ"

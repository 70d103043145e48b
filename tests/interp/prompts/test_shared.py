"""Tokens that are parts of characters, against the bytes of words and of all of Unicode."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings

from interp.errors import InterpError
from interp.prompts import POLICIES, AnswerTokens, SharedPrefix, shared_prefixes
from tests.interp.prompts.algorithms import MAKERS, algorithm, words

LLAMA2 = "Metaspace BPE, space at the first word"
slow = settings(max_examples=60, deadline=None, derandomize=True)
_answers: dict[tuple[str, str], AnswerTokens] = {}


@pytest.mark.parametrize("name", MAKERS)
@slow
@given(word=words())
def test_partial_tokens_are_those_whose_bytes_end_inside_the_first_character(name: str, word: str) -> None:
    made = algorithm(name)
    seen = made.seen(word).strip("▁ ")
    assume(seen and seen[0] != "\N{REPLACEMENT CHARACTER}")  # the mark of a decoding error is no word's beginning
    for policy in POLICIES:
        answers = _answers.setdefault((name, policy), AnswerTokens(made.tokenizer, policy))
        try:
            counted = answers.of_word(word)
        except InterpError:
            continue
        expected = {}
        for token_id, token in zip(counted, made.tokenizer.convert_ids_to_tokens(counted), strict=True):
            held = (made.text_of(token) or b"").removeprefix(b" ")
            if len(held) < len(seen[0].encode()):
                assert seen[0].encode().startswith(held)
                expected[token_id] = held
        assert answers.partial(word) == expected


def test_words_that_share_a_first_byte() -> None:
    tokenizer = algorithm(LLAMA2).tokenizer
    found = shared_prefixes(tokenizer, ["世", "king", "丙", "한", "世"])
    vocabulary = tokenizer.get_vocab()
    assert found == [
        SharedPrefix(vocabulary["<0xE4>"], "<0xE4>", b"\xe4", ("世", "丙")),
        SharedPrefix(vocabulary["<0xED>"], "<0xED>", b"\xed", ("한",)),
    ]
    assert str(found[0]) == (
        f"token '<0xE4>' ({vocabulary['<0xE4>']}) is only E4, which begins 4096 characters (U+4000 to U+4FFF): "
        "no evidence about '世', '丙'"
    )
    assert shared_prefixes(tokenizer, "king") == []
    assert shared_prefixes(tokenizer, "世") == [SharedPrefix(vocabulary["<0xE4>"], "<0xE4>", b"\xe4", ("世",))]


def test_byte_level_tokens_hold_several_bytes() -> None:
    tokenizer = algorithm("byte-level BPE, GPT-2's words").tokenizer
    held = [(shared.token, shared.prefix) for shared in shared_prefixes(tokenizer, "世")]
    assert held == [("ä¸", b"\xe4\xb8"), ("Ġä¸", b"\xe4\xb8")]


def test_exact_words_are_never_parts() -> None:
    tokenizer = algorithm(LLAMA2).tokenizer
    assert shared_prefixes(tokenizer, ["king"], "exact") == []
    with pytest.raises(InterpError, match="has no token by the policy 'exact'"):
        shared_prefixes(tokenizer, ["世"], "exact")


PREFIXES = ["C3", "D0", "E0", "E0 A4", "E4", "E4 B8", "ED", "EF", "F0", "F0 9F", "F0 9F 91", "F0 90", "F4", "F4 8F"]


def test_code_points_are_all_whose_bytes_begin_so() -> None:
    begun: dict[bytes, list[int]] = {bytes.fromhex(prefix): [] for prefix in PREFIXES}
    for code_point in range(0x80, 0x110000):
        if not 0xD800 <= code_point <= 0xDFFF:
            written = chr(code_point).encode()
            for size in range(1, len(written)):
                if written[:size] in begun:
                    begun[written[:size]].append(code_point)
    for prefix, code_points in begun.items():
        assert list(SharedPrefix(0, "", prefix, ()).code_points) == code_points

"""Answer tokens against slow computations of each tokenizer algorithm."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from transformers import PreTrainedTokenizerBase

from interp.errors import InterpError
from interp.prompts import POLICIES, AnswerTokens, SharedPrefix, answer_tokens, shared_prefixes
from tests.interp.prompts.algorithms import MAKERS, SPECIAL, TRICKY, Algorithm, algorithm, words

slow = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
_answers: dict[tuple[str, str], AnswerTokens] = {}


def given_tokens(name: str, policy: str, word: str) -> list[int]:
    """What the code under test gives; nothing where it says that the word has no token."""
    if (name, policy) not in _answers:
        _answers[name, policy] = AnswerTokens(algorithm(name).tokenizer, policy)
    try:
        return _answers[name, policy].of_word(word)
    except InterpError as error:
        assert repr(word) in str(error)
        return []


def expected_pieces(made: Algorithm, word: str) -> list[list[str]]:
    """The readings of a word behind nothing and behind a space, without those that begin with a mere space."""
    readings = [made.pieces(gap, word) for gap in ("", " ")]
    return [reading for reading in readings if reading and reading[0] not in ("▁", "Ġ") and made.seen(word).strip()]


@pytest.mark.parametrize("name", MAKERS)
@slow
@given(word=words())
def test_first_token_is_what_the_algorithm_gives_inside_a_text(name: str, word: str) -> None:
    made = algorithm(name)
    vocabulary = made.tokenizer.get_vocab()
    expected = list(dict.fromkeys(vocabulary[reading[0]] for reading in expected_pieces(made, word)))
    assert given_tokens(name, "first_token", word) == expected


@pytest.mark.parametrize("name", MAKERS)
@slow
@given(word=words())
def test_exact_is_the_word_in_one_token(name: str, word: str) -> None:
    made = algorithm(name)
    vocabulary = made.tokenizer.get_vocab()
    single = [reading[0] for reading in expected_pieces(made, word) if len(reading) == 1]
    assert given_tokens(name, "exact", word) == list(dict.fromkeys(vocabulary[token] for token in single))


@pytest.mark.parametrize("name", MAKERS)
@slow
@given(word=words())
def test_all_prefixes_is_every_entry_that_begins_the_word(name: str, word: str) -> None:
    made = algorithm(name)
    expected = set()
    readings = expected_pieces(made, word)
    for token, token_id in made.tokenizer.get_vocab().items() if readings else ():
        text = None if token in SPECIAL or token.startswith("<0x") else made.text_of(token)
        if text is None or not text.strip():
            continue
        try:
            prefix = text.decode()
        except UnicodeDecodeError:
            continue  # a part of a character
        if made.seen(word).startswith(prefix) or (" " + made.seen(word)).startswith(prefix):
            expected.add(token_id)
    expected |= {made.tokenizer.get_vocab()[reading[0]] for reading in readings}
    found = given_tokens(name, "all_prefixes", word)
    assert set(found) == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_no_answer_is_a_space(name: str, policy: str) -> None:
    made = algorithm(name)
    for word in TRICKY:
        for token in given_tokens(name, policy, word):
            assert made.tokenizer.convert_ids_to_tokens(token) not in ("▁", "Ġ", " ")


def by_name(name: str, tokens: list[str]) -> list[int]:
    return [algorithm(name).tokenizer.get_vocab()[token] for token in tokens]


@pytest.mark.parametrize(
    "scheme", ["space at the first word", "space at every start", "no space", "Llama 2's normalizer"]
)
def test_metaspace_gives_both_readings_and_bytes(scheme: str) -> None:
    name = f"Metaspace BPE, {scheme}"
    tokenizer = algorithm(name).tokenizer
    assert answer_tokens(tokenizer, ["king"]) == by_name(name, ["king", "▁king"])
    assert answer_tokens(tokenizer, ["世"]) == by_name(name, ["<0xE4>"])  # and not the space before it
    assert answer_tokens(tokenizer, ["世"], "all_prefixes") == by_name(name, ["<0xE4>"])
    assert answer_tokens(tokenizer, ["king"], "exact") == by_name(name, ["king", "▁king"])
    prefixes = by_name(
        name, [t for t in ("k", "ki", "kin", "king", "▁k", "▁ki", "▁kin", "▁king") if t in tokenizer.get_vocab()]
    )
    assert answer_tokens(tokenizer, ["king"], "all_prefixes") == prefixes
    with pytest.raises(InterpError, match="'世' has no token by the policy 'exact'"):
        answer_tokens(tokenizer, ["king", "世"], "exact")


@pytest.mark.parametrize("policy", POLICIES)
def test_mark_for_spaces_around_a_word_is_ignored_where_it_is_one(policy: str) -> None:
    name = "Metaspace BPE, no space"
    tokenizer = algorithm(name).tokenizer
    assert answer_tokens(tokenizer, ["▁king"], policy) == answer_tokens(tokenizer, ["king"], policy)
    letters = algorithm("byte-level BPE, GPT-2's words").tokenizer  # where it is a letter like any other
    found = letters.convert_ids_to_tokens(answer_tokens(letters, ["▁king"]))
    assert found == algorithm("byte-level BPE, GPT-2's words").pieces("", "▁king")[:1]


def test_quote_that_merges_with_words_does_not_disturb() -> None:
    name = "byte-level BPE, Llama 3's words"
    tokenizer = algorithm(name).tokenizer
    assert '"Buch' in tokenizer.get_vocab()  # the prompts of the papers end in a quote: this tokenizer would merge it
    assert answer_tokens(tokenizer, ["Buch"])[0] == tokenizer.encode("Buch", add_special_tokens=False)[0]


def test_several_words_keep_their_order_without_repeats() -> None:
    tokenizer = algorithm("byte-level BPE, GPT-2's words").tokenizer
    single = [answer_tokens(tokenizer, [word]) for word in ("libro", "king", "libro")]
    assert answer_tokens(tokenizer, ["libro", "king", "libro"]) == single[0] + single[1]
    assert answer_tokens(tokenizer, [" libro "]) == single[0]
    assert answer_tokens(tokenizer, []) == []


@pytest.mark.parametrize("word", ["", " ", "\n", "\N{NO-BREAK SPACE}"])
def test_word_of_spaces_is_refused(word: str) -> None:
    with pytest.raises(InterpError, match="has no token"):
        answer_tokens(algorithm("byte-level BPE, GPT-2's words").tokenizer, [word])


def test_unknown_policy_names_the_nearest() -> None:
    with pytest.raises(InterpError, match="Did you mean 'first_token'"):
        answer_tokens(algorithm("WordPiece").tokenizer, ["king"], "first_tokens")


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InterpError, match="surrogate"):
        answer_tokens(algorithm("WordPiece").tokenizer, ["a\ud800"])


def test_slow_tokenizer_gives_the_same(slow_tokenizer: PreTrainedTokenizerBase) -> None:
    assert slow_tokenizer.convert_ids_to_tokens(answer_tokens(slow_tokenizer, ["b", "ab"])) == ["b", "a"]
    assert set(slow_tokenizer.convert_ids_to_tokens(answer_tokens(slow_tokenizer, ["ab"], "all_prefixes"))) == {"a"}
    assert answer_tokens(slow_tokenizer, ["b"], "exact") == answer_tokens(slow_tokenizer, ["b"])


LLAMA2 = "Metaspace BPE, space at the first word"
slow_shared = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.mark.parametrize("name", MAKERS)
@slow_shared
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

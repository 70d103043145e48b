"""Chooses which tokens count as an answer.

The probability of a word is measured at one position, so it is the summed probability of the tokens that the word can
begin with. Which tokens those are is a choice that changes the numbers; each choice has a name here. A token that is
only a part of a character begins many words at once (`SharedPrefix`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.errors import InterpError, nearest
from interp.prompts.encoding import check_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["POLICIES", "AnswerTokens", "SharedPrefix", "answer_tokens", "shared_prefixes"]


POLICIES = ("first_token", "all_prefixes", "exact")

# A word is tokenized behind one of these, because at the start of a text many tokenizers put a space before it. The
# first one that the tokenizer keeps apart from the word is used: a newline is a token of its own nearly everywhere,
# but tokenizers that normalise it to a space need a visible character.
ANCHORS = ("\n", '"', ":", ".", "=", "|")
GAPS = ("", " ")  # a word may be the answer with and without a space before it

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # how SentencePiece spells a byte for which it has no character
SPACE_MARK = "▁"  # how SentencePiece spells a space
BYTE_LEVEL_SPACE = "Ġ"  # how byte-level BPE spells it
UNDECODED = "\N{REPLACEMENT CHARACTER}"  # what a part of a character's bytes decodes to


def answer_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], policy: str = "first_token") -> list[int]:
    """The tokens that count as the answer when any of several words is accepted.

    Arguments:
        tokenizer: a transformers tokenizer.
        words: the accepted words; spaces around a word are ignored.
        policy: one of
            `first_token`: the first token of each word, with and without a space before it (Dumas et al. 2025);
            `all_prefixes`: every vocabulary entry that is a prefix of a word, with and without a space before it, and
            the first token of the word where that is only a part of its first character (Wendler et al. 2024);
            `exact`: words that are one token, with or without a space before them.

    Returns:
        Distinct token ids, in the order of the words. A token that is only a space is never among them.

    Raises:
        InterpError: an unknown policy, or a word that has no such token.
    """
    return AnswerTokens(tokenizer, policy)(words)


class AnswerTokens:
    """`answer_tokens` for many words: what depends on the tokenizer alone is computed once.

    Arguments:
        tokenizer: a transformers tokenizer.
        policy: as in `answer_tokens`.

    Raises:
        InterpError: an unknown policy.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, policy: str = "first_token") -> None:
        if policy not in POLICIES:
            raise InterpError(f"expected a policy for answer tokens, got {policy!r}.{nearest(policy, POLICIES)}")
        self.policy = policy
        self._tokenizer = tokenizer
        self._normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
        mark = tokenizer.encode(SPACE_MARK, add_special_tokens=False, verbose=False)
        self._space = " " if self._decode(mark).strip() else SPACE_MARK  # elsewhere the mark is a letter like any other
        self._anchors: dict[str, list[int]] = {}
        for anchor in ANCHORS:
            ids = tokenizer.encode(anchor, add_special_tokens=False, verbose=False)
            # One that is dropped, or turned into a space, keeps nothing apart.
            if ids and (self._decode(ids).strip(" ") == anchor or tokenizer.unk_token_id in ids):
                self._anchors[anchor] = ids
        self._by_text: dict[str, list[int]] | None = None
        self._known: dict[str, list[int]] = {}

    def __call__(self, words: Sequence[str]) -> list[int]:
        """The tokens that count when any of the words is accepted; see `answer_tokens`."""
        return list(dict.fromkeys(token for word in words for token in self.of_word(word)))

    def of_word(self, word: str) -> list[int]:
        """The tokens that count as one word.

        Arguments:
            word: the word; spaces around it are ignored.

        Returns:
            Distinct token ids, at least one.

        Raises:
            InterpError: the word has no such token.
        """
        if word not in self._known:
            check_unicode(word)
            self._known[word] = list(dict.fromkeys(self._find(word.replace(self._space, " ").strip())))
        if not self._known[word]:
            raise InterpError(
                f"the word {word!r} has no token by the policy {self.policy!r}: "
                + (
                    "it is not one token of this tokenizer. Leave it out, or use `first_token`."
                    if self.policy == "exact"
                    else "the tokenizer does not give it back when it is encoded and decoded. Leave it out."
                )
            )
        return list(self._known[word])

    def partial(self, word: str) -> dict[int, bytes]:
        """Those of a word's tokens that are only a part of its first character, and so begin many other words too.

        Arguments:
            word: the word; spaces around it are ignored.

        Returns:
            Token id -> the bytes of the character that the token holds; mostly empty.

        Raises:
            InterpError: the word has no token.
        """
        first = self._bare(word)[:1]
        found = {}
        for token_id in self.of_word(word):
            if self._bare(self._decode([token_id]))[:1] == first:
                continue
            entry = self._tokenizer.convert_ids_to_tokens(token_id)
            # Byte-level vocabularies spell each byte as one letter, the space before a word among them.
            size = 1 if BYTE_TOKEN.fullmatch(entry) else len(entry.removeprefix(BYTE_LEVEL_SPACE))
            found[token_id] = first.encode()[:size]
        return found

    def _find(self, word: str) -> Iterator[int]:
        if not self._bare(word):
            return
        readings = [self._behind_anchor(gap, word) for gap in GAPS]
        if self.policy == "exact":
            yield from (reading[0] for reading in readings if len(reading) == 1)
            return
        if self.policy == "all_prefixes" and any(readings):
            yield from self._prefixes(word)
        yield from (reading[0] for reading in readings if reading)

    def _behind_anchor(self, gap: str, word: str) -> list[int]:
        """The tokens of a word inside a text, after `gap`; none where the first is only a space or nothing fits."""
        for anchor, anchor_ids in self._anchors.items():
            ids = self._tokenizer.encode(anchor + gap + word, add_special_tokens=False, verbose=False)
            own = ids[len(anchor_ids) :]
            if own and ids[: len(anchor_ids)] == anchor_ids and self._bare(self._decode(own)) == self._bare(word):
                # A space that is a token of its own stands before every such word and tells nothing about this one.
                return own if self._bare(self._decode(own[:1])) else []
        return []

    def _prefixes(self, word: str) -> Iterator[int]:
        """Every vocabulary entry that is a string prefix of the word, without and with a space before it."""
        if self._by_text is None:
            self._by_text = self._vocabulary_by_text()
        word = self._normalized(word)
        for gap in GAPS:
            for length in range(1, len(word) + 1):
                yield from self._by_text.get(gap + word[:length], ())

    def _vocabulary_by_text(self) -> dict[str, list[int]]:
        """Text inside a sentence -> the vocabulary entries that stand for it.

        Left out are special tokens, bytes, parts of characters, and pieces that only stand inside a word (`##s`).
        """
        if not self._anchors:
            return {}
        tokenizer = self._tokenizer
        inside_word = ""
        if tokenizer.is_fast:
            inside_word = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None) or ""
        special = set(tokenizer.all_special_ids)
        entries = sorted(
            token_id
            for token, token_id in tokenizer.get_vocab().items()
            if token_id not in special
            and not BYTE_TOKEN.fullmatch(token)
            and not (inside_word and token.startswith(inside_word))
        )
        # Behind an anchor a decoder keeps the space that it would strip at the start of a text.
        anchor_ids = next(iter(self._anchors.values()))
        anchor_text = self._decode(anchor_ids)
        sequences = [[*anchor_ids, token_id] for token_id in entries]
        if tokenizer.is_fast:  # in one call, over all cores: there may be 250,000 entries
            texts = tokenizer.backend_tokenizer.decode_batch(sequences, skip_special_tokens=False)
        else:
            texts = [self._decode(sequence) for sequence in sequences]
        by_text: dict[str, list[int]] = {}
        for token_id, text in zip(entries, texts, strict=True):
            if text.startswith(anchor_text) and UNDECODED not in text:
                by_text.setdefault(text[len(anchor_text) :], []).append(token_id)
        return by_text

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _normalized(self, text: str) -> str:
        """The text as the tokenizer sees it (some lower the case or compose accents), without its mark for spaces."""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        return text.replace(self._space, " ").strip()

    def _bare(self, text: str) -> str:
        """The normalised text without any space: what is compared to tell whether tokens give a word back."""
        return "".join(self._normalized(text).split())


SMALLEST = {2: 0x80, 3: 0x800, 4: 0x10000}  # the first code point that UTF-8 writes with so many bytes
LARGEST = 0x10FFFF
BEFORE_SURROGATES = 0xD7FF  # what follows has no UTF-8


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """An answer token that is only a part of a character.

    Arguments:
        token_id: the token.
        token: its entry in the vocabulary.
        prefix: the bytes of the character that it holds.
        words: the given words that count it.
    """

    token_id: int
    token: str
    prefix: bytes
    words: tuple[str, ...]

    @property
    def code_points(self) -> range:
        """The code points whose UTF-8 bytes begin with these."""
        lead, *rest = self.prefix
        length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        value = lead & (0xFF >> (length + 1))
        for byte in rest:
            value = value << 6 | byte & 0x3F
        missing = 6 * (length - len(self.prefix))
        first, last = value << missing, (value + 1 << missing) - 1
        largest = BEFORE_SURROGATES if lead == 0xED else LARGEST
        return range(max(first, SMALLEST[length]), min(last, largest) + 1)

    def __str__(self) -> str:
        block = self.code_points
        return (
            f"token {self.token!r} ({self.token_id}) is only {self.prefix.hex(' ').upper()}, which begins {len(block)} "
            f"characters (U+{block[0]:04X} to U+{block[-1]:04X}): no evidence about {', '.join(map(repr, self.words))}"
        )


def shared_prefixes(
    tokenizer: PreTrainedTokenizerBase, words: str | Sequence[str], policy: str = "first_token"
) -> list[SharedPrefix]:
    """The answer tokens of words that are only a part of a character.

    Arguments:
        tokenizer: a transformers tokenizer.
        words: one word or several.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.

    Returns:
        One for each such token, in the order of the words; none where every counted token says something of its word.

    Raises:
        InterpError: an unknown policy, or a word that has no token by the policy.
    """
    answers = AnswerTokens(tokenizer, policy)
    found: dict[int, tuple[bytes, list[str]]] = {}
    for word in [words] if isinstance(words, str) else words:
        for token_id, prefix in answers.partial(word).items():
            found.setdefault(token_id, (prefix, []))[1].append(word)
    entries = tokenizer.convert_ids_to_tokens(list(found))
    return [
        SharedPrefix(token_id, token, prefix, tuple(dict.fromkeys(counted)))
        for token, (token_id, (prefix, counted)) in zip(entries, found.items(), strict=True)
    ]

"""Answer tokens that are only a part of a character, and so stand for many words at once.

A tokenizer writes a character that it has no entry for as bytes, and one byte begins thousands of characters: `<0xE4>`
begins all from U+4000 to U+4FFF, 世 and 中 among them. Its probability says "Chinese", and nothing about a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.prompts.answers import AnswerTokens

if TYPE_CHECKING:  # transformers imports torch, which this module does without
    from transformers import PreTrainedTokenizerBase

__all__ = ["SharedPrefix", "shared_prefixes"]

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

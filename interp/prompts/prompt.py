"""`Prompt`: a text, the answers measured after it by name, and spans of characters.

prompt = Prompt.from_strings('Français: "livre" - English: "', {"en": ["book"], "fr": ["livre", "bouquin"]}, tokenizer)
prompt.target_tokens["en"]      # token ids whose summed probability is the probability of the answer
prompt.collisions()             # answers that share a token cannot be told apart
prompt.encode(tokenizer)        # token ids, and the tokens of the marked characters
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError, nearest
from interp.prompts.answers import AnswerTokens
from interp.prompts.encoding import Encoded, encode
from interp.prompts.occurrences import mark_word

if TYPE_CHECKING:  # transformers imports torch, which this module does without
    from transformers import PreTrainedTokenizerBase

__all__ = ["Accepted", "Collision", "Prompt", "Target"]

Accepted = str | int | Sequence[str | int]  # one word or token id, or several


@dataclass(frozen=True, slots=True)
class Target:
    """One answer: what counts as it.

    Arguments:
        words: the accepted words, best first.
        token_ids: the tokens that count, distinct.
        partial: those of them that are only a part of a character -> the bytes that they hold. They are no evidence
            about the word, because every character that begins with these bytes begins with the same token.
    """

    words: tuple[str, ...]
    token_ids: tuple[int, ...]
    partial: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Collision:
    """Two targets that count the same tokens, so that their probabilities cannot be told apart.

    Arguments:
        targets: their names.
        token_ids: the tokens that both count.
        partial: those of them that are only a part of a character -> the bytes that they hold.
    """

    targets: tuple[str, str]
    token_ids: tuple[int, ...]
    partial: Mapping[int, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        first, second = self.targets
        shared = (
            f"{first!r} and {second!r} share {_count(self.token_ids, 'token')} {', '.join(map(str, self.token_ids))}"
        )
        if not self.partial:
            return shared
        held = ", ".join(f"{token}: {part.hex(' ').upper()}" for token, part in self.partial.items())
        return f"{shared}; only a part of a character's bytes, so no evidence about a word: {held}"


@dataclass(frozen=True)
class Prompt:
    """A text, the answers measured after it, and marked characters in it.

    Arguments:
        text: what the model reads.
        targets: name -> what counts as this answer; `with_targets` makes them from words.
        spans: name -> (first character, one past the last character); `interp.positions` counts tokens in them.
        add_special_tokens: whether the tokenizer adds its start token. False where the text has every special token
            already, as a chat template writes it.
        images: PIL images, paths, or arrays (height, width, channel), in the order of their placeholders in the text.
    """

    text: str
    targets: Mapping[str, Target] = field(default_factory=dict)
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    add_special_tokens: bool = True
    images: tuple[Any, ...] = ()

    @classmethod
    def from_strings(
        cls,
        text: str,
        targets: Mapping[str, Accepted] | Accepted,
        tokenizer: PreTrainedTokenizerBase,
        policy: str = "first_token",
    ) -> Prompt:
        """A prompt whose answers are given as words.

        Arguments:
            text: what the model reads.
            targets: name -> accepted words, or token ids that count as they are; without names, one target `target`.
            tokenizer: the model's.
            policy: which tokens count as a word; see `interp.prompts.answer_tokens`.

        Raises:
            InterpError: an unknown policy, a target without words, or a word that has no token by the policy.
        """
        return cls(text).with_targets(targets, AnswerTokens(tokenizer, policy))

    def with_targets(self, targets: Mapping[str, Accepted] | Accepted, answers: AnswerTokens) -> Prompt:
        """The same text and spans with other answers.

        Arguments:
            targets: as in `from_strings`.
            answers: of the tokenizer and the policy; made once for many prompts, for it remembers.

        Raises:
            InterpError: a target without words, or a word that has no token by the policy.
        """
        named = targets if isinstance(targets, Mapping) else {"target": targets}
        return replace(self, targets={name: _target(name, accepted, answers) for name, accepted in named.items()})

    def marked(
        self,
        span: str,
        word: str | Sequence[str],
        *,
        occurrence: str = "last",
        boundary: str = "both",
        ignore_case: bool = False,
    ) -> Prompt:
        """The same prompt with one of its words marked; the other spans stay.

        Arguments:
            span: name of the new span.
            word: the word, or several forms of it.
            occurrence: which of several, `first` or `last`.
            boundary, ignore_case: what counts as the word; see `interp.prompts.find_word`.

        Raises:
            InterpError: the word does not occur; the message says in which other form it does.
        """
        place = mark_word(self.text, word, occurrence, boundary=boundary, ignore_case=ignore_case)
        return replace(self, spans={**self.spans, span: (place.start, place.stop)})

    @property
    def target_tokens(self) -> dict[str, tuple[int, ...]]:
        """Name of each target -> the token ids that count, distinct."""
        return {name: target.token_ids for name, target in self.targets.items()}

    def collisions(self, ignore: str | Collection[str] = ()) -> list[Collision]:
        """Which tokens are shared, and between which targets.

        Arguments:
            ignore: targets that may share tokens: a name, or several.

        Returns:
            One for each pair of targets that share any, in the order of the targets.

        Raises:
            InterpError: an ignored name is no target.
        """
        ignored = {ignore} if isinstance(ignore, str) else set(ignore)
        for name in sorted(ignored - set(self.targets)):
            raise InterpError(f"no target is called {name!r}.{nearest(name, self.targets)}")
        found = []
        for first, second in combinations([name for name in self.targets if name not in ignored], 2):
            others = set(self.targets[second].token_ids)
            shared = tuple(token for token in self.targets[first].token_ids if token in others)
            if shared:
                known = {**self.targets[first].partial, **self.targets[second].partial}
                partial = {token: known[token] for token in shared if token in known}
                found.append(Collision((first, second), shared, partial))
        return found

    def has_collisions(self, ignore: str | Collection[str] = ()) -> bool:
        """Whether two targets share a token; see `collisions`."""
        return bool(self.collisions(ignore))

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> Encoded:
        """Tokenize the prompt and find the tokens of its spans; see `interp.prompts.encode`.

        Raises:
            InterpError: it has images, which a tokenizer alone does not know.
        """
        if self.images:
            raise InterpError(
                "a prompt with images: expected the model's processor (encode_with_images), got a tokenizer."
            )
        return encode(tokenizer, self.text, self.spans, add_special_tokens=self.add_special_tokens)


def _target(name: str, accepted: Accepted, answers: AnswerTokens) -> Target:
    several: Iterable[str | int] = [accepted] if isinstance(accepted, str | int) else accepted
    words: list[str] = []
    token_ids: list[int] = []
    partial: dict[int, bytes] = {}
    for entry in several:
        if isinstance(entry, str):
            words.append(entry)
            token_ids += answers.of_word(entry)
            partial |= answers.partial(entry)
        elif isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0:
            token_ids.append(entry)
        else:
            raise InterpError(f"target {name!r}: expected words or token ids (0 or more), got {entry!r}.")
    if not token_ids:
        raise InterpError(f"target {name!r}: expected at least one word or token id, got none.")
    return Target(tuple(words), tuple(dict.fromkeys(token_ids)), partial)


def _count(things: Collection[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"

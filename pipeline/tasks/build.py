"""What every task does the same way: templates, answers, collisions, the model's context."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.errors import InterpError
from interp.prompts import AnswerTokens, encode
from interp.prompts.templates import Template
from pipeline.config.base import ConfigError
from pipeline.tasks.records import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Answers", "collide", "configured_template", "make_row"]

log = logging.getLogger("interpipe")
SHOWN = 60  # characters of a prompt in a message


def configured_template(text: str, *, answer: str, query: str, known: Sequence[str]) -> Template:
    """The template of the setting `task.template`; arguments as of `interp.prompts.Template`.

    Raises:
        ConfigError: a blank is unknown, missing or out of order.
    """
    try:
        return Template(text, answer=answer, query=query, known=known)
    except InterpError as error:
        raise ConfigError(f"task.template: {error}") from None


@dataclass(frozen=True, slots=True)
class Answer:
    """Accepted words, and the tokens that count as any of them."""

    words: list[str]
    token_ids: list[int]


class Answers:
    """The tokens of accepted words by one policy; words that have none are left out and counted.

    Arguments:
        tokenizer: a transformers tokenizer.
        policy: as in `interp.prompts.answer_tokens`.

    Raises:
        ConfigError: an unknown policy.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, policy: str) -> None:
        try:
            self._tokens = AnswerTokens(tokenizer, policy)
        except InterpError as error:
            raise ConfigError(f"task.target_policy: {error}") from None
        self._made: dict[tuple[str, ...], Answer] = {}
        self.unusable: set[str] = set()

    def __call__(self, words: Sequence[str]) -> Answer:
        """The words that have tokens, with their tokens; both empty where no word has any."""
        key = tuple(words)
        if key not in self._made:
            usable = []
            for word in key:
                try:
                    self._tokens.of_word(word)
                    usable.append(word)
                except InterpError:
                    self.unusable.add(word)
            self._made[key] = Answer(words=usable, token_ids=self._tokens(usable))
        return self._made[key]


def collide(groups: Iterable[Sequence[int]]) -> bool:
    """Whether two groups of tokens share one, so that their probabilities cannot be told apart."""
    seen = Counter(token for group in groups for token in set(group))
    return any(count > 1 for count in seen.values())


def make_row(
    tokenizer: PreTrainedTokenizerBase,
    context_length: int | None,
    *,
    where: str,
    prompt: str,
    spans: Mapping[str, tuple[int, int]],
    labels: Mapping[str, str],
    answers: Mapping[str, Answer],
    languages: Mapping[str, str] | None = None,
    find: Callable[[str, str, str], None] | None = None,
) -> Row:
    """Tokenize one prompt and put what is known about it together.

    Arguments:
        tokenizer: a transformers tokenizer.
        context_length: how many tokens the model reads at most; None: no limit is known.
        where: which prompt this is, for messages (`prompts row 3`).
        prompt: the text.
        spans: name -> characters.
        labels: name -> value; `collides` is added: `yes` where two groups share a token.
        answers: group -> answer.
        languages: group -> language, where several groups may ask for the same word in the same language. Such groups
            share their tokens because they are one, which is no collision.
        find: told (what, where, the text) where a span's tokens hold more than its characters.

    Raises:
        InterpError: the prompt is longer than the context, or cannot be tokenized.
    """
    try:
        encoded = encode(tokenizer, prompt, spans)
    except InterpError as error:
        raise InterpError(f"{where}: {error}") from None
    if context_length is not None and len(encoded.input_ids) > context_length:
        shown = prompt if len(prompt) <= SHOWN else prompt[:SHOWN] + "…"
        raise InterpError(
            f"{where} has {len(encoded.input_ids)} tokens, the model reads {context_length} at most: {shown!r}. "
            "Shorten it, take fewer shots, or use a model with a longer context."
        )
    for name, (start, stop) in encoded.characters.items():
        read, meant = prompt[start:stop].strip(), prompt[slice(*spans[name])].strip()
        if read != meant and find is not None:
            note = "words that share a token with their neighbours, so that both are read"
            find(note, where, f"{meant} in {read}")
    distinct = {languages[group] if languages else group: answer for group, answer in answers.items()}
    collides = collide(answer.token_ids for answer in distinct.values())
    return Row(
        prompt=prompt,
        input_ids=encoded.input_ids,
        spans=encoded.spans,
        labels={**labels, "collides": "yes" if collides else "no"},
        answers={group: answer.token_ids for group, answer in answers.items()},
        words={group: answer.words for group, answer in answers.items()},
    )

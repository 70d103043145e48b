"""Build prompts from templates and answers, for all tasks: collisions, the model's context length, odd prompts."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError
from interp.prompts import AnswerTokens, Encoded, encode
from interp.prompts.templates import Template
from pipeline.artifacts.tokens import Row, TaskData, plain_span, ranges_of
from pipeline.config.section import ConfigError
from pipeline.tables.table import Note, TableError
from pipeline.tables.text_files import check_encoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Answers", "Findings", "collide", "configured_template", "make_row", "odd_prompts", "shortened"]


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
    encoder: Callable[[str, Mapping[str, tuple[int, int]]], Encoded] | None = None,
    images: Sequence[str] = (),
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
        encoder: encodes text and spans, of a prompt with images; None: `encode`.
        images: names of its images in `tokens/images`.

    Raises:
        InterpError: the prompt is longer than the context, or cannot be tokenized.
    """
    try:
        encoded = encode(tokenizer, prompt, spans) if encoder is None else encoder(prompt, spans)
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
        spans={name: plain_span(ranges_of(span)) for name, span in encoded.spans.items()},
        labels={**labels, "collides": "yes" if collides else "no"},
        answers={group: answer.token_ids for group, answer in answers.items()},
        words={group: answer.words for group, answer in answers.items()},
        images=tuple(images),
    )


SHOWN = 60  # characters of a text in an example
EXAMPLES = 3

# Signs that nobody sees. The joiners U+200C and U+200D are letters of Persian, Hindi and emoji, so between other signs
# than ASCII they are no oddity; neither are the tags of flags.
INVISIBLE = re.compile(
    "[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
    "|(?:^|(?<=[\x00-\x7f]))[\u200c\u200d]|[\u200c\u200d](?=[\x00-\x7f]|$)"
)
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")  # but tab, line feed, return and next line


class Findings:
    """Counts of what was found, in the order in which it was found first."""

    def __init__(self) -> None:
        self._examples: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, what: str, example: str) -> None:
        """Count one more.

        Arguments:
            what: as it follows its count in a sentence (`rows without a prompt left out`).
            example: this one, with its place.
        """
        self._counts[what] += 1
        shown = self._examples.setdefault(what, [])
        if len(shown) < EXAMPLES:
            shown.append(example)

    def notes(self) -> tuple[Note, ...]:
        """All that was found."""
        return tuple(Note(what, self._counts[what], tuple(shown)) for what, shown in self._examples.items())


def shortened(text: str) -> str:
    """A text as an example shows it: what is invisible is spelled out (`\\u200b`), what is long is cut."""
    cut = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return INVISIBLE.sub(lambda sign: ascii(sign[0])[1:-1], repr(cut))


def odd_prompts(data: TaskData, tokenizer: PreTrainedTokenizerBase) -> tuple[Note, ...]:
    """What is odd about prompts, target prompts and answers, though a model reads them.

    Arguments:
        data: what a task made.
        tokenizer: the model's.

    Returns:
        Counts with examples: special tokens inside a prompt, signs that nobody sees, a space at the end (the tokenizer
        would have joined it to the next word), blanks that were not filled, prompts that stand there several times.
    """
    findings = Findings()
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    bare = Counter(tokenizer.encode("a", add_special_tokens=False))
    usual = Counter(encode(tokenizer, "a").input_ids) - bare  # what begins or ends every prompt
    for name, rows in (("prompts", data.prompts), ("target prompts", data.targets)):
        for number, row in enumerate(rows):
            where = f"{name.removesuffix('s')} {number} {shortened(row.prompt)}"
            ids = [] if row.images else row.input_ids  # images have such of their own, and belong to a chat as a rule
            held = Counter(token for token in ids if token in special) - usual
            if tokenizer.unk_token_id in held and tokenizer.unk_token not in row.prompt:
                del held[tokenizer.unk_token_id]  # it stands for a sign that the tokenizer does not know
            if held:
                named = ", ".join(tokenizer.decode([token]) for token in sorted(held))
                findings.add(f"{name} whose text holds special tokens ({named})", where)
            _odd_text(findings, name, row.prompt, where)
            if row.prompt[-1:].isspace() and row.prompt[-1] not in "\r\n":
                findings.add(f"{name} that end in a space, so that the next token begins without one", where)
            if "{}" in row.prompt:
                findings.add(f"{name} that hold {{}}, with no subject to fill it", where)
    _odd_answers(findings, data.prompts, [tokenizer.decode([token]) for token in sorted(special)])
    _repeated(findings, data.prompts)
    return findings.notes()


def _odd_text(findings: Findings, name: str, text: str, where: str) -> None:
    if text.isascii() and text.isprintable():
        return
    if len(unicodedata.normalize("NFC", text)) < len(text):
        findings.add(
            f"{name} whose accents are signs of their own (decomposed), which a tokenizer reads as others", where
        )
    if INVISIBLE.search(text):
        findings.add(f"{name} that hold invisible characters", where)
    if CONTROL.search(text):
        findings.add(f"{name} that hold control characters", where)


def _odd_answers(findings: Findings, rows: Sequence[Row], special: Sequence[str]) -> None:
    words = dict.fromkeys(word for row in rows for accepted in row.words.values() for word in accepted)
    for word in words:
        _odd_text(findings, "answers", word, shortened(word))
        if held := [token for token in special if token in word]:
            findings.add(f"answers whose text holds special tokens ({', '.join(held)})", shortened(word))
        if word != word.strip():
            findings.add("answers with spaces around them", shortened(word))


def _repeated(findings: Findings, rows: Iterable[Row]) -> None:
    times = Counter((row.prompt, tuple(row.images)) for row in rows)
    for (prompt, _), count in times.most_common():
        for _ in range(count - 1):
            findings.add("prompts that repeat an earlier one", f"{count} times {shortened(prompt)}")


def check_file_encoding(encoding: str) -> None:
    """Check that `task.encoding` is a known one; raises ConfigError."""
    try:
        check_encoding(encoding)
    except TableError as error:
        raise ConfigError(f"task.encoding: {error}") from None


def check_language(where: str, code: str, known: Any, file: str) -> None:
    """Check that a file has a language; raises ConfigError."""
    if not code:
        raise ConfigError(f"{where}: expected a language, got nothing. {file} has {', '.join(sorted(known))}.")
    if code not in known:
        raise ConfigError(f"{where}: {file} has no language {code!r}. It has {', '.join(sorted(known))}.")


def check_different(where: str, names: list[str]) -> None:
    """Check that each name stands once; raises ConfigError."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: expected each once, got {name!r} {names.count(name)} times.")

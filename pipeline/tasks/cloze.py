"""Cloze: complete a sentence that describes a masked word (Wendler et al. 2024, arXiv 2402.10588).

A "___" is read page by page. Answer: "book"
A "___" carries people over water. Answer: "
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from interp.errors import InterpError
from interp.prompts import POLICIES
from pipeline.artifacts.tokens import Row, TaskData
from pipeline.config.paths import located
from pipeline.config.section import (
    LARGEST_COUNT,
    LARGEST_SEED,
    MISSING,
    ConfigError,
    bounded,
    chosen,
    nearest,
    passage,
)
from pipeline.config.task import TaskConfig
from pipeline.tables.json_rows import json_objects
from pipeline.tables.table import TableError
from pipeline.tables.text_files import decoded
from pipeline.tasks.build import (
    Answers,
    check_different,
    check_file_encoding,
    check_language,
    configured_template,
    make_row,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BLANK", "ClozeConfig", "Sentence", "make_cloze", "read_sentences"]

BLANK = "___"  # where the word is masked
COLUMNS = {"concept", "language", "text", "words"}


@dataclass(frozen=True)
class ClozeConfig(TaskConfig):
    """Cloze: complete a sentence that describes a masked word (Wendler et al. 2024).

    Arguments:
        kind: `cloze`.
        sentences: path of a JSON-lines file with `concept`, `language`, `text` (where `___` stands for the word) and
            `words`, the accepted words in that language; a concept's rows in other languages give its words there.
        encoding: as in `NextTokenConfig`.
        language: language of the sentences.
        latent_languages: further languages whose words are measured.
        shots: solved sentences before the question.
        template: one line; `{sentence}` and `{word}` are filled in. The question is the line up to the word.
        max_concepts, target_policy, seed: as in `TranslationConfig`.
        depends_on: the file that the stage depends on, the sentences.
    """

    file_key: ClassVar[str] = "sentences"

    kind: str = "cloze"
    sentences: str = MISSING
    encoding: str = "auto"
    language: str = MISSING
    latent_languages: list[str] = field(default_factory=list)
    shots: int = bounded(2, 0, 1000)
    template: str = passage('{sentence} "{word}"')
    max_concepts: int | None = bounded(None, 1, LARGEST_COUNT)
    target_policy: str = chosen("first_token", *POLICIES)
    seed: int = bounded(0, 0, LARGEST_SEED)
    depends_on: str = MISSING

    def spans(self) -> tuple[str, ...]:
        """The spans that it marks in its prompts."""
        return ("query", "blank")

    def check(self) -> None:
        """Check the settings against each other and against the input file; raises ConfigError."""
        check_file_encoding(self.encoding)
        path = located(self.sentences)
        if not path.exists():
            raise ConfigError(f"task.sentences: expected a JSON-lines file at {path}, found none. Check the path.")
        try:
            sentences = read_sentences(path, self.encoding)
        except TableError as error:
            raise ConfigError(f"task.sentences: {error}") from None
        concepts: dict[str, set[str]] = {}
        for sentence in sentences:
            concepts.setdefault(sentence.language, set()).add(sentence.concept)
        check_language("task.language", self.language, concepts, self.sentences)
        for index, code in enumerate(self.latent_languages):
            check_language(f"task.latent_languages[{index}]", code, concepts, self.sentences)
        check_different("task.latent_languages", self.latent_languages)
        if self.language in self.latent_languages:
            raise ConfigError(
                f"task.latent_languages: {self.language!r} is the language of the sentences, so every prompt would "
                "collide with itself. Leave it out."
            )
        if self.shots >= len(concepts[self.language]):
            raise ConfigError(
                f"task.shots: {self.shots} solved sentences and a question need {self.shots + 1} sentences, and "
                f"{self.sentences} has {len(concepts[self.language])} in {self.language!r}. Lower task.shots."
            )
        configured_template(self.template, answer="word", query="sentence", known=("sentence", "word"))

    def make(self, tokenizer: PreTrainedTokenizerBase, context_length: int | None) -> TaskData:
        """Make the prompts, targets and pairs; see `make_cloze`."""
        return make_cloze(self, tokenizer, context_length)


def make_cloze(config: ClozeConfig, tokenizer: PreTrainedTokenizerBase, context_length: int | None) -> TaskData:
    """One prompt for every concept that has a sentence in the language and words in all latent languages.

    Spans: `query`, the last sentence, and `blank`, the `___` in it.

    Arguments:
        config: the task. Concepts are taken in the file's order.
        tokenizer: the model's.
        context_length: how many tokens the model reads at most; None: no limit is known.

    Raises:
        ConfigError: the sentences cannot be read, a language is not among them, they are too few, or the template is
            wrong.
        InterpError: a prompt is too long, or nothing is left after dropping.
    """
    template = configured_template(config.template, answer="word", query="sentence", known=("sentence", "word"))
    by_language: dict[str, dict[str, Sentence]] = {}
    try:
        read = read_sentences(config.sentences, config.encoding)
    except TableError as error:
        raise ConfigError(f"task.sentences: {error}") from None
    for sentence in read:
        by_language.setdefault(sentence.language, {})[sentence.concept] = sentence
    for name, language in [("language", config.language), *(("latent_languages", x) for x in config.latent_languages)]:
        if language not in by_language:
            raise ConfigError(
                f"task.{name}: {config.sentences} has no language {language!r}.{nearest(language, by_language)}"
            )
    if len({config.language, *config.latent_languages}) <= len(config.latent_languages):
        raise ConfigError(
            f"task.latent_languages: expected different languages beside task.language={config.language}, "
            f"got {config.latent_languages}."
        )
    sentences = by_language[config.language]
    if not 0 <= config.shots < len(sentences):
        raise ConfigError(
            f"task.shots: expected 0 to {len(sentences) - 1}, since {config.sentences} has {len(sentences)} sentences "
            f"in {config.language!r} and a prompt never shows the one that it asks about; got {config.shots}."
        )
    answers = Answers(tokenizer, config.target_policy)
    groups = {"answer": config.language} | {f"latent_{language}": language for language in config.latent_languages}
    prompts: list[Row] = []
    untranslated = wordless = over = 0
    for concept, sentence in sentences.items():
        if not all(concept in by_language[language] for language in config.latent_languages):
            untranslated += 1
            continue
        accepted = {group: answers(by_language[language][concept].words) for group, language in groups.items()}
        if not all(answer.token_ids for answer in accepted.values()):
            wordless += 1
            continue
        if config.max_concepts is not None and len(prompts) >= config.max_concepts:
            over += 1
            continue
        # The shots depend on seed, language and concept alone: no other setting changes them.
        others = [other for other in sentences.values() if other.concept != concept]
        shots = random.Random(f"{config.seed} {config.language} {concept}").sample(others, config.shots)
        values = [{"sentence": shown.text, "word": shown.words[0]} for shown in (*shots, sentence)]
        prompt = template.few_shot(values[:-1], values[-1])
        query = prompt.spans["query"]
        blank = query[0] + sentence.text.index(BLANK)
        prompts.append(
            make_row(
                tokenizer,
                context_length,
                where=f"prompts row {len(prompts)}",
                prompt=prompt.text,
                spans={"query": query, "blank": (blank, blank + len(BLANK))},
                labels={"concept": concept, "language": config.language},
                answers=accepted,
            )
        )
    colliding = sum(row.labels["collides"] == "yes" for row in prompts)
    counts = {
        "concepts": len(sentences),
        "concepts_without_latent_words": untranslated,
        "concepts_without_answer_tokens": wordless,
        "concepts_over_limit": over,
        "concepts_kept": len(prompts),
        "prompts": len(prompts),
        "prompts_colliding": colliding,
        "words_without_tokens": len(answers.unusable),
    }
    if colliding == len(prompts):
        raise InterpError(
            f"of {len(sentences)} concepts none is left: {untranslated} have no words in a latent language, {wordless} "
            f"have a language without answer tokens by task.target_policy={config.target_policy}, {over} are over "
            f"task.max_concepts={config.max_concepts}, and in {colliding} the answer groups share a token. "
            "Choose other languages, or another task.target_policy."
        )
    labels = {"answer": f"concept in the language of the sentence ({config.language})"}
    labels |= {f"latent_{language}": f"concept in {language}" for language in config.latent_languages}
    return TaskData(prompts, counts=counts, groups=labels)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One row of a file of sentences.

    Arguments:
        concept: what the masked word means.
        language: code of the language.
        text: the sentence, with one `___` where the word is masked.
        words: the accepted words, best first.
    """

    concept: str
    language: str
    text: str
    words: tuple[str, ...]


def read_sentences(path: str | Path, encoding: str = "auto") -> list[Sentence]:
    """Read a file of sentences.

    Arguments:
        path: the file; JSON lines or a JSON list, one object a sentence with `concept`, `language`, `text`, `words`.
        encoding: of its text; `auto`: as the byte-order mark says, else UTF-8.

    Raises:
        TableError: the file or a sentence of it is not such; the message names the line.
    """
    text, _ = decoded(path, encoding)
    objects, lines, _ = json_objects(text, str(path))
    found: dict[tuple[str, str], Sentence] = {}
    for values, line in zip(objects, lines, strict=True):
        where = f"{path}, line {line}"
        sentence = _sentence(values, where)
        key = (sentence.concept, sentence.language)
        if key in found:
            raise TableError(f"{where}: a second sentence for {key[0]!r} in {key[1]!r}. Keep one.")
        found[key] = sentence
    if not found:
        raise TableError(f"{path} holds no sentence.")
    return list(found.values())


def _sentence(values: dict[str, Any], where: str) -> Sentence:
    missing = sorted(COLUMNS - set(values))
    if missing:
        raise TableError(f"{where}: expected the key {missing[0]!r}, got {sorted(values)}.")
    if set(values) != COLUMNS:
        raise TableError(f"{where}: expected an object with exactly {sorted(COLUMNS)}, got {sorted(values)}.")
    words = values["words"]
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise TableError(f"{where}: expected 'words' to be a list of at least one word, got {words!r}.")
    for column in sorted(COLUMNS - {"words"}):
        if not isinstance(values[column], str) or not values[column].strip():
            raise TableError(f"{where}: expected {column!r} to be a text, got {values[column]!r}.")
    if "\0" in values["text"] or any("\0" in word for word in words):
        raise TableError(f"{where}: expected text, got a NUL in {values!r}. Mend the line.")
    if values["text"].count(BLANK) != 1:
        raise TableError(f"{where}: expected one {BLANK!r} in 'text', got {values['text']!r}.")
    return Sentence(
        str(values["concept"]), str(values["language"]), str(values["text"]), tuple(str(word) for word in words)
    )

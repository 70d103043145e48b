"""What a config's input files hold, as far as it decides whether the config can run.

Files are read by the functions that the stage `tokenize` reads them by, so that what is accepted here is read there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.errors import InterpError
from interp.prompts.templates import Template
from pipeline.config.base import ConfigError
from pipeline.config.model import HUB_ID
from pipeline.config.paths import HUB_DATASET, located
from pipeline.config.task import (
    AttributeExtractionConfig,
    ClozeConfig,
    NextTokenConfig,
    TaskConfig,
    TranslationConfig,
    choice_of,
)  # fmt: skip
from pipeline.demo.lexicon import load_lexicon
from pipeline.tables.decoding import check_encoding
from pipeline.tables.published import formats_hint
from pipeline.tables.reading import read_source
from pipeline.tables.sentences import read_sentences
from pipeline.tables.table import SUFFIXES, TableError, is_table_file


def check_task(task: TaskConfig) -> None:
    """Check a task against its input file.

    Arguments:
        task: section `task`, localized.

    Raises:
        ConfigError: a missing or unreadable file, languages or columns that it lacks, languages that contradict each
            other, a template with unknown blanks.
    """
    if isinstance(task, TranslationConfig):
        _check_translation(task)
    elif isinstance(task, ClozeConfig):
        _check_cloze(task)
    elif isinstance(task, NextTokenConfig):
        _check_next_token(task)
    else:
        _check_attribute_extraction(task)


def _check_translation(task: TranslationConfig) -> None:
    _check_encoding(task.encoding)
    try:
        lexicon = load_lexicon(
            located(task.lexicon), task.encoding, shared_words=task.shared_words, phrases=task.phrases
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"task.lexicon: {error}") from None
    known = lexicon.languages
    if not task.source_languages:
        raise ConfigError("task.source_languages: expected at least one language, got none.")
    languages = [(f"task.source_languages[{i}]", code) for i, code in enumerate(task.source_languages)]
    languages += [("task.target_language", task.target_language)]
    languages += [(f"task.latent_languages[{i}]", code) for i, code in enumerate(task.latent_languages)]
    if task.patch_into is not None:
        languages += [("task.patch_into.source_language", task.patch_into.source_language)]
        languages += [("task.patch_into.target_language", task.patch_into.target_language)]
    for where, code in languages:
        _check_language(where, code, known, task.lexicon)
    _check_different("task.source_languages", task.source_languages)
    _check_different("task.latent_languages", task.latent_languages)
    repetition = task.source_languages == [task.target_language] and task.patch_into is None  # Wendler et al. 2024
    if task.target_language in task.source_languages and not repetition:
        raise ConfigError(
            f"task.target_language: {task.target_language!r} is also one of task.source_languages "
            f"({', '.join(task.source_languages)}). Translation needs two languages, or, to repeat a word, that one "
            "source language and task.patch_into=null."
        )
    if task.patch_into is not None and task.patch_into.source_language == task.patch_into.target_language:
        raise ConfigError(
            f"task.patch_into: source_language and target_language are both {task.patch_into.target_language!r}. "
            "Translation needs two languages: change one of the two."
        )
    measured = [task.target_language] + ([task.patch_into.target_language] if task.patch_into else [])
    for code in task.latent_languages:
        if code in measured:
            raise ConfigError(
                f"task.latent_languages: {code!r} is already measured as a target language, so every prompt would "
                "collide with itself. Leave it out."
            )
    if task.measure_source_language and set(task.source_languages) <= set(task.latent_languages):
        raise ConfigError(
            f"task.latent_languages: {', '.join(task.latent_languages)} covers every source language, whose words are "
            "measured already, so every prompt would collide with itself. Leave one out."
        )
    asked = [(source, task.target_language) for source in task.source_languages]
    asked += [] if task.patch_into is None else [(task.patch_into.source_language, task.patch_into.target_language)]
    fewest = min(len(lexicon.speaking(*pair)) for pair in asked)
    if task.shots >= fewest:
        raise ConfigError(
            f"task.shots: {task.shots} solved lines and a question need {task.shots + 1} concepts, and {task.lexicon} "
            f"has {fewest} with words in both languages. Lower task.shots."
        )
    if task.patch_into is not None and task.max_concepts == 1:
        raise ConfigError("task.max_concepts: a pair needs two different concepts, got 1. Raise it.")
    blanks = ("source_name", "source_word", "target_name", "target_word")
    _check_template(task.template, answer="target_word", query="source_word", known=blanks)


def _check_cloze(task: ClozeConfig) -> None:
    _check_encoding(task.encoding)
    path = located(task.sentences)
    if not path.exists():
        raise ConfigError(f"task.sentences: expected a JSON-lines file at {path}, found none. Check the path.")
    try:
        sentences = read_sentences(path, task.encoding)
    except TableError as error:
        raise ConfigError(f"task.sentences: {error}") from None
    concepts: dict[str, set[str]] = {}
    for sentence in sentences:
        concepts.setdefault(sentence.language, set()).add(sentence.concept)
    _check_language("task.language", task.language, concepts, task.sentences)
    for index, code in enumerate(task.latent_languages):
        _check_language(f"task.latent_languages[{index}]", code, concepts, task.sentences)
    _check_different("task.latent_languages", task.latent_languages)
    if task.language in task.latent_languages:
        raise ConfigError(
            f"task.latent_languages: {task.language!r} is the language of the sentences, so every prompt would collide "
            "with itself. Leave it out."
        )
    if task.shots >= len(concepts[task.language]):
        raise ConfigError(
            f"task.shots: {task.shots} solved sentences and a question need {task.shots + 1} sentences, and "
            f"{task.sentences} has {len(concepts[task.language])} in {task.language!r}. Lower task.shots."
        )
    _check_template(task.template, answer="word", query="sentence", known=("sentence", "word"))


def _check_next_token(task: NextTokenConfig) -> None:
    _check_encoding(task.encoding)
    if task.depends_on == HUB_DATASET:
        if not HUB_ID.fullmatch(task.source):
            raise ConfigError(f"task.source: expected a dataset's hub id or a file, got {task.source!r}.")
        return
    asked = [("task.prompt_column", task.prompt_column)]
    asked += [] if task.subject_column is None else [("task.subject_column", task.subject_column)]
    asked += [(f"task.target_columns[{i}]", name) for i, name in enumerate(task.target_columns)]
    asked += [(f"task.label_columns[{i}]", name) for i, name in enumerate(task.label_columns)]
    _check_columns(task, asked)
    _check_different("task.target_columns", task.target_columns)


def _check_attribute_extraction(task: AttributeExtractionConfig) -> None:
    _check_encoding(task.encoding)
    if not task.placeholder.strip():
        raise ConfigError(f"task.placeholder: expected a word, got {task.placeholder!r}.")
    columns = ("prompt_column", "subject_column", "target_column", "answer_column")
    asked = [(f"task.{column}", str(getattr(task, column))) for column in columns]
    asked += [(f"task.label_columns[{i}]", name) for i, name in enumerate(task.label_columns)]
    _check_columns(task, asked)


def _check_encoding(encoding: str) -> None:
    try:
        check_encoding(encoding)
    except TableError as error:
        raise ConfigError(f"task.encoding: {error}") from None


def _check_columns(task: NextTokenConfig | AttributeExtractionConfig, asked: list[tuple[str, str]]) -> None:
    """Check that a file can be read, and has the columns that settings name."""
    path = located(task.source)
    if not is_table_file(path) and not path.is_dir():
        raise ConfigError(f"task.source: expected a file that ends in {', '.join(SUFFIXES)}, got {task.source!r}.")
    if not path.exists():
        raise ConfigError(f"task.source: expected a file with prompts at {path}, found none. Check the path.")
    try:
        table = read_source(path, task.encoding, task.quoting, choice_of(task))
    except TableError as error:
        raise ConfigError(f"task.source: {error}") from None
    for where, name in asked:
        if name not in table.columns:
            raise ConfigError(f"{where}: {path} has no column {name!r}.{table.hint(name)}{formats_hint(table)}")
        try:
            table.index(name)
        except TableError as error:
            raise ConfigError(f"{where}: {error}") from None


def _check_language(where: str, code: str, known: Any, file: str) -> None:
    if not code:
        raise ConfigError(f"{where}: expected a language, got nothing. {file} has {', '.join(sorted(known))}.")
    if code not in known:
        raise ConfigError(f"{where}: {file} has no language {code!r}. It has {', '.join(sorted(known))}.")


def _check_different(where: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: expected each once, got {name!r} {names.count(name)} times.")


def _check_template(template: str, *, answer: str, query: str, known: Sequence[str]) -> None:
    try:
        Template(template, answer=answer, query=query, known=known)
    except InterpError as error:
        raise ConfigError(f"task.template: {error}") from None

"""Section `task`: what the experiment asks. `kind` selects the schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.config.base import (
    LARGEST_COUNT,
    LARGEST_SEED,
    MISSING,
    ConfigError,
    bounded,
    load_section,
    nearest,
    passage,
    section_from,
)
from pipeline.tables.facts import Choice


@dataclass  # not frozen: OmegaConf cannot merge into a nested frozen dataclass
class PatchIntoConfig:
    """The prompts that a patchscope patches into (Dumas et al. 2025: the *target* prompts).

    Arguments:
        source_language: language of the word that they ask about.
        target_language: language that they ask for.
    """

    source_language: str = MISSING
    target_language: str = MISSING


@dataclass(frozen=True)
class TranslationConfig:
    """Few-shot word translation (Wendler et al. 2024; Dumas et al. 2025).

    Arguments:
        kind: `translation`.
        lexicon: path of the lexicon file, or of a word list as its paper ships it: the table of Dumas et al., a file of
            Wendler et al. or the folder of theirs.
        encoding: of its text, as in `NextTokenConfig`.
        shared_words: what becomes of a word that two concepts have in one language: `drop` it from the one in which it
            is the lesser word, `keep` it in both, `refuse` the file. Pairs whose answers share a token are left out in
            any case.
        phrases: what becomes of a word with spaces in it: `keep`, `drop` or `refuse`.
        source_languages: languages in which the prompts give the word; with several, a patchscope can take their mean.
        target_language: language in which the prompts ask for the word.
        latent_languages: further languages whose words are measured (English in the papers).
        measure_source_language: also measure the words of the language that a prompt gives; a prompt is dropped where
            two of its groups share a token, so each group costs prompts. Wendler et al. measure the answer and English.
        patch_into: the prompts that a patchscope patches into; null: none.
        shots: solved lines before the question.
        template: one line; `{source_name}`, `{source_word}`, `{target_name}`, `{target_word}` are filled in. The
            question is the line up to the target word.
        pairs: how many (source concept, target concept) pairs at most; null: all.
        max_concepts: how many concepts at most; null: all.
        single_token_queries: keep only concepts whose query words are one token.
        target_policy: which tokens count as an answer: `first_token`, `all_prefixes` or `exact`.
        seed: of the shots and the pairs.
        depends_on: the file that the stage depends on, the lexicon.
    """

    kind: str = "translation"
    lexicon: str = MISSING
    encoding: str = "auto"
    shared_words: str = "drop"
    phrases: str = "keep"
    source_languages: list[str] = field(default_factory=lambda: ["de"])
    target_language: str = MISSING
    latent_languages: list[str] = field(default_factory=list)
    measure_source_language: bool = True
    patch_into: PatchIntoConfig | None = None
    shots: int = bounded(5, 0, 1000)
    template: str = passage('{source_name}: "{source_word}" - {target_name}: "{target_word}"')
    pairs: int | None = bounded(200, 1, LARGEST_COUNT)
    max_concepts: int | None = bounded(None, 1, LARGEST_COUNT)
    single_token_queries: bool = False
    target_policy: str = "first_token"
    seed: int = bounded(0, 0, LARGEST_SEED)
    depends_on: str = MISSING


@dataclass(frozen=True)
class ClozeConfig:
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

    kind: str = "cloze"
    sentences: str = MISSING
    encoding: str = "auto"
    language: str = MISSING
    latent_languages: list[str] = field(default_factory=list)
    shots: int = bounded(2, 0, 1000)
    template: str = passage('{sentence} "{word}"')
    max_concepts: int | None = bounded(None, 1, LARGEST_COUNT)
    target_policy: str = "first_token"
    seed: int = bounded(0, 0, LARGEST_SEED)
    depends_on: str = MISSING


@dataclass(frozen=True)
class NextTokenConfig:
    """The user's own prompts: from a file or a hub dataset (`datasets.load_dataset`).

    Arguments:
        kind: `next_token`.
        source: a file (`.csv`, `.tsv`, `.txt` with a prompt a line, `.json`, `.jsonl`, `.ndjson`, `.parquet`; also
            compressed: `.gz`), or a dataset id on the hub.
        name: configuration of a hub dataset.
        split: split of a hub dataset.
        revision: revision of a hub dataset.
        encoding: of a file's text: `auto` (what its byte-order mark says, else UTF-8), or `latin-1`, `cp1252`, ...
        quoting: what a cell of CSV and TSV that begins with `"` is: `auto` (quoted where the sign is closed before a
            delimiter or the line's end, else text), `rfc4180` (quoted) or `none` (text).
        prompt_column: column that holds the prompts. Objects inside JSON objects are reached by dots:
            `requested_rewrite.prompt`.
        subject_column: column of whom a prompt is about: its text stands in for `{}`, or is found in the prompt, and is
            the span `query`; null: no subject, and `{}` is text.
        occurrence: which of several places of a subject: `first`, `last`, or `auto`: the one that the file says (see
            `format`), else the last.
        word_boundary: where a subject has to begin and end a word, in scripts that put spaces between words: `both`;
            `start`: an ending may follow (`Buch` in `Buches`); `none`. A word of its own goes first in any case.
        ignore_case: whether a subject is found in capital and small letters alike.
        target_columns: columns that hold accepted answers (a text or a number, or a list of those), one target group
            each.
        label_columns: columns kept as labels.
        format: `auto`: a published data set if the file's keys are of one, else rows as they are; `table`: rows as they
            are; or one of `relations`, `function_vectors`, `known`, `counterfact`, `ravel`, `pararel`, `lama`,
            `translation_prompts`, `patchscopes`, which the file must then be. The columns of each are `prompt`,
            `subject`, `target`, `relation`, `template`, ...: see `pipeline.tables.published`.
        prompt_template: of a published data set: number of the template, from 0; `all`; or a text with `{}` for the
            subject; null: the first one.
        relations: of a published data set: which relations (attributes of RAVEL); none: all.
        shots: of a published data set: solved examples before each prompt.
        seed: of the choice of these.
        list_cells: which texts that spell a list, such as `['Buch', 'Band']`, are lists of accepted answers: `auto`:
            those of CSV, TSV and text files; `always`: also those of JSON and parquet; `text`: none.
        max_prompts: how many rows at most, in order; null: all.
        target_policy: as in `TranslationConfig`.
        depends_on: the file that the stage depends on; for a hub dataset this project's own marker file.
    """

    kind: str = "next_token"
    source: str = MISSING
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    encoding: str = "auto"
    quoting: str = "auto"
    prompt_column: str = "prompt"
    subject_column: str | None = None
    occurrence: str = "auto"
    word_boundary: str = "both"
    ignore_case: bool = False
    target_columns: list[str] = field(default_factory=list)
    label_columns: list[str] = field(default_factory=list)
    format: str = "auto"
    prompt_template: str | None = None
    relations: list[str] = field(default_factory=list)
    shots: int = bounded(0, 0, 1000)
    seed: int = bounded(0, 0, LARGEST_SEED)
    list_cells: str = "auto"
    max_prompts: int | None = bounded(None, 1, LARGEST_COUNT)
    target_policy: str = "first_token"
    depends_on: str = MISSING


@dataclass(frozen=True)
class AttributeExtractionConfig:
    """Attribute extraction (Ghandeharioun et al. 2024): a subject patched into a prompt that asks for an attribute.

    Arguments:
        kind: `attribute_extraction`.
        source: a file, one subject and attribute a row; the defaults of the columns are those of the files that go with
            the paper.
        encoding, quoting, list_cells, format, prompt_template, relations: as in `NextTokenConfig`.
        prompt_column: column that holds the source prompts, texts in which the subject occurs, or `{}` in its place.
        subject_column: column that holds the subjects.
        occurrence, word_boundary, ignore_case: where a subject stands in its prompt, as in `NextTokenConfig`.
        target_column: column that holds the prompts that are patched into.
        answer_column: column that holds the accepted attributes, a text or a number, or a list of those.
        placeholder: the word of a target prompt that is written over, at its last occurrence.
        label_columns: columns kept as labels.
        max_prompts: how many rows at most, in order; null: all.
        target_policy: as in `TranslationConfig`.
        depends_on: the file that the stage depends on.
    """

    kind: str = "attribute_extraction"
    source: str = MISSING
    encoding: str = "auto"
    quoting: str = "auto"
    prompt_column: str = "prompt_source"
    subject_column: str = "subject"
    occurrence: str = "auto"
    word_boundary: str = "both"
    ignore_case: bool = False
    target_column: str = "prompt_target"
    answer_column: str = "object"
    placeholder: str = "x"
    label_columns: list[str] = field(default_factory=list)
    format: str = "auto"
    prompt_template: str | None = None
    relations: list[str] = field(default_factory=list)
    list_cells: str = "auto"
    max_prompts: int | None = bounded(None, 1, LARGEST_COUNT)
    target_policy: str = "first_token"
    depends_on: str = MISSING


TaskConfig = TranslationConfig | ClozeConfig | NextTokenConfig | AttributeExtractionConfig
TASKS: dict[str, type[TaskConfig]] = {
    "translation": TranslationConfig,
    "cloze": ClozeConfig,
    "next_token": NextTokenConfig,
    "attribute_extraction": AttributeExtractionConfig,
}


def spans_of(task: TaskConfig) -> tuple[str, ...]:
    """What a task marks in its prompts."""
    if isinstance(task, NextTokenConfig):
        return () if task.subject_column is None else ("query",)
    return ("query", "blank") if isinstance(task, ClozeConfig) else ("query",)


def choice_of(task: NextTokenConfig | AttributeExtractionConfig) -> Choice:
    """What a task takes of a published data set."""
    return Choice(
        format=task.format,
        template=task.prompt_template,
        relations=tuple(task.relations),
        shots=0 if isinstance(task, AttributeExtractionConfig) else task.shots,
        seed=0 if isinstance(task, AttributeExtractionConfig) else task.seed,
        placeholder=task.placeholder if isinstance(task, AttributeExtractionConfig) else "x",
    )


def task_from(values: dict[str, Any]) -> TaskConfig:
    """The section from plain values.

    Raises:
        ConfigError: an unknown `kind`, and all that `section_from` raises.
    """
    kind = values.get("kind")
    if kind not in TASKS:
        raise ConfigError(f"task.kind: unknown task {kind!r}.{nearest(str(kind), list(TASKS))}")
    return section_from(TASKS[kind], values, "task")


def load_task_config(params: str = "params.yaml") -> TaskConfig:
    """The section of a run folder's `params.yaml`."""
    return task_from(load_section("task", params))

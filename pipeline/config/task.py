"""Section `task`: what the experiment asks. `kind` selects the schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.config.base import MISSING, ConfigError, load_section, nearest, section_from


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
        lexicon: path of the lexicon file.
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
    source_languages: list[str] = field(default_factory=lambda: ["de"])
    target_language: str = MISSING
    latent_languages: list[str] = field(default_factory=list)
    measure_source_language: bool = True
    patch_into: PatchIntoConfig | None = None
    shots: int = 5
    template: str = '{source_name}: "{source_word}" - {target_name}: "{target_word}"'
    pairs: int | None = 200
    max_concepts: int | None = None
    single_token_queries: bool = False
    target_policy: str = "first_token"
    seed: int = 0
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
    shots: int = 2
    template: str = '{sentence} "{word}"'
    max_concepts: int | None = None
    target_policy: str = "first_token"
    seed: int = 0
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
        subject_column: column whose text stands in for `{}` in a prompt; null: `{}` is text.
        target_columns: columns that hold accepted answers (a text or a number, or a list of those), one target group
            each.
        label_columns: columns kept as labels.
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
    target_columns: list[str] = field(default_factory=list)
    label_columns: list[str] = field(default_factory=list)
    list_cells: str = "auto"
    max_prompts: int | None = None
    target_policy: str = "first_token"
    depends_on: str = MISSING


@dataclass(frozen=True)
class AttributeExtractionConfig:
    """Attribute extraction (Ghandeharioun et al. 2024): a subject patched into a prompt that asks for an attribute.

    Arguments:
        kind: `attribute_extraction`.
        source: a file, one subject and attribute a row; the defaults of the columns are those of the files that go with
            the paper.
        encoding, quoting, list_cells: as in `NextTokenConfig`.
        prompt_column: column that holds the source prompts, texts in which the subject occurs, or `{}` in its place.
        subject_column: column that holds the subjects; where one occurs more than once, its last occurrence is read.
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
    target_column: str = "prompt_target"
    answer_column: str = "object"
    placeholder: str = "x"
    label_columns: list[str] = field(default_factory=list)
    list_cells: str = "auto"
    max_prompts: int | None = None
    target_policy: str = "first_token"
    depends_on: str = MISSING


TaskConfig = TranslationConfig | ClozeConfig | NextTokenConfig | AttributeExtractionConfig
TASKS: dict[str, type[TaskConfig]] = {
    "translation": TranslationConfig,
    "cloze": ClozeConfig,
    "next_token": NextTokenConfig,
    "attribute_extraction": AttributeExtractionConfig,
}


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

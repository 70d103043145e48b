"""Next token: the user's own prompts, from a file or a data set on the hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from interp.prompts import BOUNDARIES, OCCURRENCES, POLICIES
from pipeline.artifacts.tokens import TaskData
from pipeline.config.model import HUB_ID
from pipeline.config.paths import HUB_DATASET
from pipeline.config.section import (
    LARGEST_COUNT,
    LARGEST_SEED,
    MISSING,
    ConfigError,
    bounded,
    chosen,
)
from pipeline.config.task import TaskConfig
from pipeline.tables.facts import FORMATS, Choice
from pipeline.tables.text_files import QUOTING
from pipeline.tasks.build import (
    Answer,
    Answers,
    check_different,
    check_file_encoding,
    make_row,
)
from pipeline.tasks.rows import Rows, Source, Subjects, check_columns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["NextTokenConfig", "make_next_token"]


@dataclass(frozen=True)
class NextTokenConfig(TaskConfig):
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

    file_key: ClassVar[str] = "source"
    on_hub: ClassVar[bool] = True

    kind: str = "next_token"
    source: str = MISSING
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    encoding: str = "auto"
    quoting: str = chosen("auto", *QUOTING)
    prompt_column: str = "prompt"
    subject_column: str | None = None
    occurrence: str = chosen("auto", "auto", *OCCURRENCES)
    word_boundary: str = chosen("both", *BOUNDARIES)
    ignore_case: bool = False
    target_columns: list[str] = field(default_factory=list)
    label_columns: list[str] = field(default_factory=list)
    format: str = chosen("auto", "auto", "table", *FORMATS)
    prompt_template: str | None = None
    relations: list[str] = field(default_factory=list)
    shots: int = bounded(0, 0, 1000)
    seed: int = bounded(0, 0, LARGEST_SEED)
    list_cells: str = chosen("auto", "auto", "always", "text")
    max_prompts: int | None = bounded(None, 1, LARGEST_COUNT)
    target_policy: str = chosen("first_token", *POLICIES)
    depends_on: str = MISSING

    def spans(self) -> tuple[str, ...]:
        """The spans that it marks in its prompts."""
        return () if self.subject_column is None else ("query",)

    def rows_of(self) -> Source:
        """Where its rows come from."""
        choice = Choice(self.format, self.prompt_template, tuple(self.relations), self.shots, self.seed)
        hub = (self.name, self.split, self.revision)
        return Source(self.source, *hub, self.encoding, self.quoting, self.list_cells, choice)

    def check(self) -> None:
        """Check the settings against each other and against the input file; raises ConfigError."""
        check_file_encoding(self.encoding)
        if self.depends_on == HUB_DATASET:
            if not HUB_ID.fullmatch(self.source):
                raise ConfigError(f"task.source: expected a dataset's hub id or a file, got {self.source!r}.")
            return
        asked = [("task.prompt_column", self.prompt_column)]
        asked += [] if self.subject_column is None else [("task.subject_column", self.subject_column)]
        asked += [(f"task.target_columns[{i}]", name) for i, name in enumerate(self.target_columns)]
        asked += [(f"task.label_columns[{i}]", name) for i, name in enumerate(self.label_columns)]
        check_columns(self.rows_of(), asked)
        check_different("task.target_columns", self.target_columns)

    def make(self, tokenizer: PreTrainedTokenizerBase, context_length: int | None) -> TaskData:
        """Make the prompts, targets and pairs; see `make_next_token`."""
        return make_next_token(self, tokenizer, context_length)


def make_next_token(
    config: NextTokenConfig, tokenizer: PreTrainedTokenizerBase, context_length: int | None
) -> TaskData:
    """One prompt a row, one answer group a target column.

    Spans: `query`, the subject, where the task names a column of subjects.

    Arguments:
        config: the task.
        tokenizer: the model's.
        context_length: how many tokens the model reads at most; None: no limit is known.

    Returns:
        The prompts. A group without answer (no value, or no word with a token) is empty there, and counted.

    Raises:
        ConfigError: the source cannot be read, or lacks a column.
        InterpError: a row has something else than a text as its prompt, or an answer that is none, or no row is left;
            the message names the line. Rows without a prompt, or whose prompt does not hold its subject, are left out,
            and counted.
    """
    if "collides" in config.label_columns:
        raise ConfigError("task.label_columns: 'collides' is a label that the task writes itself. Rename the column.")
    columns = {
        "prompt_column": [config.prompt_column],
        "subject_column": [] if config.subject_column is None else [config.subject_column],
        "target_columns": config.target_columns,
        "label_columns": config.label_columns,
    }
    rows = Rows(config.rows_of(), columns, config.max_prompts)
    subjects = Subjects(config, rows)
    answers = Answers(tokenizer, config.target_policy)
    prompts = []
    missing = unusable = 0
    for where, values in rows:
        prompt = rows.text(values, config.prompt_column, where, "prompt")
        if prompt is None:
            continue
        spans: dict[str, tuple[int, int]] = {}
        if config.subject_column is not None:
            subject = rows.text(values, config.subject_column, where, "subject")
            found = None
            if subject is not None:
                found = subjects.marked(where, values, config.prompt_column, subject, "prompt")
            if found is None:
                continue
            prompt, spans["query"] = found
        groups: dict[str, Answer] = {}
        for column in config.target_columns:
            words = rows.words(values, column, where)
            groups[column] = answers(words)
            missing += not words
            unusable += bool(words) and not groups[column].token_ids
        prompts.append(
            make_row(
                tokenizer,
                context_length,
                where=where,
                prompt=prompt,
                spans=spans,
                labels=rows.labels(values, config.label_columns),
                answers=groups,
                find=rows.find,
            )
        )
    rows.check_left(len(prompts))
    counts = {
        "rows": rows.total,
        "rows_over_limit": rows.total - rows.used,
        "rows_left_out": rows.dropped,
        "prompts": len(prompts),
        "prompts_colliding": sum(row.labels["collides"] == "yes" for row in prompts),
        "answers_missing": missing,
        "answers_without_tokens": unusable,
        "words_without_tokens": len(answers.unusable),
    }
    groups_named = {column: column for column in config.target_columns}
    return TaskData(prompts, counts=counts, groups=groups_named, notes=rows.notes(), read_as=rows.read_as)

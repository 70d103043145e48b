"""Attribute extraction (Ghandeharioun et al. 2024, arXiv 2401.06102): what does a model know of a subject, and where?

    The largest city of France attracts ...      a source prompt; `France` is the subject
    The official currency of x                   the prompt that it is patched into; `x` is its placeholder

What the model holds at the subject is written over the placeholder; a model that says `euro` then had the attribute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from interp.errors import InterpError
from interp.prompts import BOUNDARIES, OCCURRENCES, POLICIES, find_word
from pipeline.artifacts.tokens import Pair, Row, TaskData
from pipeline.config.section import (
    LARGEST_COUNT,
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
    check_file_encoding,
    make_row,
)
from pipeline.tasks.rows import Rows, Source, Subjects, check_columns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["AttributeExtractionConfig", "make_attribute_extraction"]


@dataclass(frozen=True)
class AttributeExtractionConfig(TaskConfig):
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

    file_key: ClassVar[str] = "source"

    kind: str = "attribute_extraction"
    source: str = MISSING
    encoding: str = "auto"
    quoting: str = chosen("auto", *QUOTING)
    prompt_column: str = "prompt_source"
    subject_column: str = "subject"
    occurrence: str = chosen("auto", "auto", *OCCURRENCES)
    word_boundary: str = chosen("both", *BOUNDARIES)
    ignore_case: bool = False
    target_column: str = "prompt_target"
    answer_column: str = "object"
    placeholder: str = "x"
    label_columns: list[str] = field(default_factory=list)
    format: str = chosen("auto", "auto", "table", *FORMATS)
    prompt_template: str | None = None
    relations: list[str] = field(default_factory=list)
    list_cells: str = chosen("auto", "auto", "always", "text")
    max_prompts: int | None = bounded(None, 1, LARGEST_COUNT)
    target_policy: str = chosen("first_token", *POLICIES)
    depends_on: str = MISSING

    def lacks_targets(self) -> str:
        """Why it makes no prompts to patch into: it makes one a row."""
        return ""

    def rows_of(self) -> Source:
        """Where its rows come from."""
        choice = Choice(self.format, self.prompt_template, tuple(self.relations), placeholder=self.placeholder)
        read = {"encoding": self.encoding, "quoting": self.quoting, "list_cells": self.list_cells}
        return Source(self.source, **read, choice=choice)

    def check(self) -> None:
        """Check the settings against each other and against the input file; raises ConfigError."""
        check_file_encoding(self.encoding)
        if not self.placeholder.strip():
            raise ConfigError(f"task.placeholder: expected a word, got {self.placeholder!r}.")
        columns = ("prompt_column", "subject_column", "target_column", "answer_column")
        asked = [(f"task.{column}", str(getattr(self, column))) for column in columns]
        asked += [(f"task.label_columns[{i}]", name) for i, name in enumerate(self.label_columns)]
        check_columns(self.rows_of(), asked)

    def make(self, tokenizer: PreTrainedTokenizerBase, context_length: int | None) -> TaskData:
        """Make the prompts, targets and pairs; see `make_attribute_extraction`."""
        return make_attribute_extraction(self, tokenizer, context_length)


def make_attribute_extraction(
    config: AttributeExtractionConfig, tokenizer: PreTrainedTokenizerBase, context_length: int | None
) -> TaskData:
    """One source prompt, one target prompt and one pair a row; rows with the same target prompt share it.

    Spans: `query`, the subject in a source prompt and the placeholder in a target prompt.

    Arguments:
        config: the task.
        tokenizer: the model's.
        context_length: how many tokens the model reads at most; None: no limit is known.

    Returns:
        The prompts, targets and pairs, with the group `answer`. Rows whose attribute has no token, that lack a text, or
        whose prompt does not hold its subject or its placeholder are left out, and counted.

    Raises:
        ConfigError: the source cannot be read, or lacks a column.
        InterpError: something else than a text stands where a prompt or a subject should, or no row is left; the
            message names the line.
    """
    columns = {
        "prompt_column": [config.prompt_column],
        "subject_column": [config.subject_column],
        "target_column": [config.target_column],
        "answer_column": [config.answer_column],
        "label_columns": config.label_columns,
    }
    rows = Rows(config.rows_of(), columns, config.max_prompts)
    subjects = Subjects(config, rows)
    answers = Answers(tokenizer, config.target_policy)
    prompts: list[Row] = []
    targets: dict[str, Row] = {}
    pairs: list[Pair] = []
    unanswered = 0
    for where, values in rows:
        answer = answers(rows.words(values, config.answer_column, where))
        if not answer.token_ids:
            unanswered += 1
            continue
        subject = rows.text(values, config.subject_column, where, "subject")
        prompt = None if subject is None else rows.text(values, config.prompt_column, where, "source prompt")
        target = None if prompt is None else rows.text(values, config.target_column, where, "target prompt")
        if subject is None or target is None:
            continue
        found = subjects.marked(where, values, config.prompt_column, subject, "source prompt")
        blank = _placeholder(rows, config, where, values, target)
        if found is None or blank is None:
            continue
        labels = {"subject": subject} | rows.labels(values, config.label_columns)
        made: dict[str, Any] = {"tokenizer": tokenizer, "context_length": context_length, "find": rows.find}
        prompt, query = found
        prompts.append(
            make_row(**made, where=where, prompt=prompt, spans={"query": query}, labels=labels,
                     answers={"answer": answer})
        )  # fmt: skip
        if target not in targets:
            targets[target] = make_row(
                **made, where=where, prompt=target, spans={"query": blank}, labels={},
                answers={"answer": Answer(words=[], token_ids=[])},
            )  # fmt: skip
        pairs.append(
            Pair(
                sources=[len(prompts) - 1],
                target=list(targets).index(target),
                labels=labels,
                answers={"answer": answer.token_ids},
                words={"answer": answer.words},
            )
        )
    if unanswered == rows.used:
        raise InterpError(
            f"{config.source}: expected rows whose attribute (column {config.answer_column!r}) has a token by "
            f"task.target_policy={config.target_policy}, got none in {rows.used} rows. Choose another policy or column."
        )
    rows.check_left(len(pairs))
    counts = {
        "rows": rows.total,
        "rows_over_limit": rows.total - rows.used,
        "rows_left_out": rows.dropped,
        "rows_without_answer_tokens": unanswered,
        "prompts": len(prompts),
        "targets": len(targets),
        "pairs": len(pairs),
        "words_without_tokens": len(answers.unusable),
    }
    groups = {"answer": config.answer_column}
    return TaskData(prompts, list(targets.values()), pairs, counts, groups, rows.notes(), rows.read_as)


def _placeholder(
    rows: Rows, config: AttributeExtractionConfig, where: str, values: Mapping[str, Any], target: str
) -> tuple[int, int] | None:
    """The characters of the placeholder in a target prompt; None: it is not there, the row is dropped."""
    start = rows.start(values, config.target_column, config.placeholder)
    if start is not None:
        return start, start + len(config.placeholder)
    found = find_word(target, config.placeholder)
    if not found:
        rows.drop(where, f"whose target prompt does not hold the placeholder {config.placeholder!r}", target)
        return None
    return found[-1].start, found[-1].stop

"""The user's own prompts, from a file or a dataset on the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.artifacts.tokens import TaskData
from pipeline.config.base import ConfigError
from pipeline.config.task import NextTokenConfig
from pipeline.tasks.build import Answer, Answers, make_row
from pipeline.tasks.rows import Rows, Subjects, source_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["make_next_token"]


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
    rows = Rows(source_of(config), columns, config.max_prompts)
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

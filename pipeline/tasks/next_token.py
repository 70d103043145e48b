"""The user's own prompts, from a file or a dataset on the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config.base import ConfigError
from pipeline.config.task import NextTokenConfig
from pipeline.tasks.build import Answer, Answers, make_row
from pipeline.tasks.records import TaskData
from pipeline.tasks.tables import Source, read_rows, text_of, words_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["make_next_token"]


def make_next_token(
    config: NextTokenConfig, tokenizer: PreTrainedTokenizerBase, context_length: int | None
) -> TaskData:
    """One prompt a row, one answer group a target column.

    Arguments:
        config: the task.
        tokenizer: the model's.
        context_length: how many tokens the model reads at most; None: no limit is known.

    Returns:
        The prompts. A group without answer (no value, or no word with a token) is empty there, and counted.

    Raises:
        ConfigError: the source cannot be read, or lacks a column.
        InterpError: a row has no usable prompt or answer; the message names the row, counted from 0.
    """
    if "collides" in config.label_columns:
        raise ConfigError("task.label_columns: 'collides' is a label that the task writes itself. Rename the column.")
    columns = {
        "prompt_column": [config.prompt_column],
        "target_columns": config.target_columns,
        "label_columns": config.label_columns,
    }
    source = Source(config.source, config.name, config.split, config.revision)
    rows, total = read_rows(source, columns, config.max_prompts)
    answers = Answers(tokenizer, config.target_policy)
    prompts = []
    missing = unusable = 0
    for number, values in enumerate(rows):
        where = f"{config.source}, row {number}"
        prompt = text_of(values[config.prompt_column], config.prompt_column, where)
        groups: dict[str, Answer] = {}
        for column in config.target_columns:
            words = words_of(values[column], f"{where}, column {column!r}")
            groups[column] = answers(words)
            missing += not words
            unusable += bool(words) and not groups[column].token_ids
        labels = {column: "" if values[column] is None else str(values[column]) for column in config.label_columns}
        prompts.append(
            make_row(
                tokenizer,
                context_length,
                where=where,
                prompt=prompt,
                spans={},
                labels=labels,
                answers=groups,
            )
        )
    counts = {
        "rows": total,
        "rows_over_limit": total - len(prompts),
        "prompts": len(prompts),
        "prompts_colliding": sum(row.labels["collides"] == "yes" for row in prompts),
        "answers_missing": missing,
        "answers_without_tokens": unusable,
        "words_without_tokens": len(answers.unusable),
    }
    return TaskData(prompts, counts=counts, groups={column: column for column in config.target_columns})

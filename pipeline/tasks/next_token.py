"""The user's own prompts, from a file or a dataset on the hub."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError, nearest
from pipeline.config.base import ConfigError
from pipeline.config.task import NextTokenConfig
from pipeline.tasks.build import Answer, Answers, make_row
from pipeline.tasks.records import TaskData

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["make_next_token"]

BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
DELIMITERS = {".csv": ",", ".tsv": "\t"}


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
    rows, total = _rows(config)
    answers = Answers(tokenizer, config.target_policy)
    prompts = []
    missing = unusable = 0
    for number, values in enumerate(rows):
        where = f"{config.source}, row {number}"
        prompt = values[config.prompt_column]
        if not isinstance(prompt, str) or not prompt:
            raise InterpError(
                f"{where}: expected a text in column {config.prompt_column!r}, got {prompt!r}. Remove or mend the row."
            )
        groups: dict[str, Answer] = {}
        for column in config.target_columns:
            words = _words(values[column], f"{where}, column {column!r}")
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


def _rows(config: NextTokenConfig) -> tuple[list[dict[str, Any]], int]:
    """The rows that are used, with the columns that are used, and how many rows there are."""
    wanted = {
        "prompt_column": [config.prompt_column],
        "target_columns": config.target_columns,
        "label_columns": config.label_columns,
    }
    for name, columns in wanted.items():
        if len(set(columns)) < len(columns):
            raise ConfigError(f"task.{name}: expected different columns, got {columns}.")
    if "collides" in config.label_columns:
        raise ConfigError("task.label_columns: 'collides' is a label that the task writes itself. Rename the column.")
    if config.max_prompts is not None and config.max_prompts < 1:
        raise ConfigError(f"task.max_prompts: expected at least 1, got {config.max_prompts}.")
    with tempfile.TemporaryDirectory() as cache:  # a file's rows are not worth a copy in the user's cache
        data = _load(config, cache)
        for name, columns in wanted.items():
            for column in columns:
                if column not in data.column_names:
                    raise ConfigError(
                        f"task.{name}: {config.source} has no column {column!r}, it has "
                        f"{', '.join(map(repr, data.column_names))}.{nearest(column, data.column_names)}"
                    )
        if len(data) == 0:
            raise ConfigError(f"task.source: {config.source} has no rows.")
        used = list(dict.fromkeys(column for columns in wanted.values() for column in columns))
        kept = len(data) if config.max_prompts is None else min(config.max_prompts, len(data))
        return data.select_columns(used).select(range(kept)).to_list(), len(data)


def _load(config: NextTokenConfig, cache: str) -> Dataset:
    import datasets  # half a second, which a task of another kind need not wait for

    path = Path(config.source)
    builder = BUILDERS.get(path.suffix.lower())
    try:
        if builder is None:
            if path.exists():
                raise ConfigError(
                    f"task.source: cannot tell the format of {config.source}; expected one of {', '.join(BUILDERS)}, "
                    "or a dataset id on the hub."
                )
            return datasets.load_dataset(config.source, config.name, split=config.split, revision=config.revision)
        if not path.is_file():
            raise ConfigError(f"task.source: there is no file {config.source}.")
        if path.stat().st_size == 0:
            raise ConfigError(f"task.source: {config.source} is empty.")
        options: dict[str, Any] = {}
        if builder == "csv":
            delimiter = DELIMITERS[path.suffix.lower()]
            # Every column is text, and only an empty cell is no value: `None`, `NA` and `007` are words like any other.
            columns = _header(path, delimiter)
            features = datasets.Features({column: datasets.Value("string") for column in columns})
            options = {"delimiter": delimiter, "features": features, "keep_default_na": False, "na_values": [""]}
        return datasets.load_dataset(builder, data_files=str(path), split="train", cache_dir=cache, **options)
    except InterpError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if "corresponds to no data" in str(error):
            raise ConfigError(f"task.source: {config.source} has no rows.") from None
        cause = error.__cause__ or error  # the builders wrap what went wrong in a message that says nothing
        said = next(iter(str(cause).splitlines()), "no reason given")
        raise ConfigError(f"task.source: cannot read {config.source} ({type(cause).__name__}: {said}).") from None


def _header(path: Path, delimiter: str) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        columns = next(csv.reader(stream, delimiter=delimiter), [])
    if len(set(columns)) < len(columns) or not all(columns):
        raise ConfigError(f"task.source: expected a first line with different column names in {path}, got {columns}.")
    return columns


def _words(value: Any, where: str) -> Sequence[str]:
    """The accepted words in a cell."""
    words = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InterpError(f"{where}: expected a text, a list of texts or nothing, got {value!r}.")
    return words

"""Rows of a table that the user brings: CSV, TSV, JSON, JSON lines, parquet, or a dataset on the hub.

Files are read by `pipeline.tables`, which the check of the config reads them by too.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError, nearest
from pipeline.config.base import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Source", "read_rows", "text_of", "words_of"]

BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from.

    Arguments:
        path: a file, or a dataset id on the hub.
        name, split, revision: of a hub dataset.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None


def read_rows(
    source: Source, columns: Mapping[str, Sequence[str]], max_rows: int | None
) -> tuple[list[dict[str, Any]], int]:
    """The rows that are used, with the columns that are used.

    Arguments:
        source: where they come from.
        columns: setting of the section `task` -> the columns that it names.
        max_rows: how many rows at most, in order; None: all.

    Returns:
        The rows, and how many there are in all.

    Raises:
        ConfigError: the source cannot be read, has no rows, or lacks a column.
    """
    for setting, named in columns.items():
        if len(set(named)) < len(named):
            raise ConfigError(f"task.{setting}: expected different columns, got {list(named)}.")
    if max_rows is not None and max_rows < 1:
        raise ConfigError(f"task.max_prompts: expected at least 1, got {max_rows}.")
    with tempfile.TemporaryDirectory() as cache:  # a file's rows are not worth a copy in the user's cache
        data = _load(source, cache)
        for setting, named in columns.items():
            for column in named:
                if column not in data.column_names:
                    raise ConfigError(
                        f"task.{setting}: {source.path} has no column {column!r}, it has "
                        f"{', '.join(map(repr, data.column_names))}.{nearest(column, data.column_names)}"
                    )
        if len(data) == 0:
            raise ConfigError(f"task.source: {source.path} has no rows.")
        used = list(dict.fromkeys(column for named in columns.values() for column in named))
        kept = len(data) if max_rows is None else min(max_rows, len(data))
        return data.select_columns(used).select(range(kept)).to_list(), len(data)


def text_of(value: Any, column: str, where: str) -> str:
    """The text in a cell.

    Raises:
        InterpError: there is none.
    """
    if not isinstance(value, str) or not value:
        raise InterpError(f"{where}: expected a text in column {column!r}, got {value!r}. Remove or mend the row.")
    return value


def _load(source: Source, cache: str) -> Dataset:
    import datasets  # half a second, which a task of another kind need not wait for

    path = Path(source.path)
    builder = BUILDERS.get(path.suffix.lower())
    try:
        if builder is None:
            if path.exists():
                raise ConfigError(
                    f"task.source: cannot tell the format of {source.path}; expected one of {', '.join(BUILDERS)}, "
                    "or a dataset id on the hub."
                )
            return datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
        if not path.is_file():
            raise ConfigError(f"task.source: there is no file {source.path}.")
        if path.stat().st_size == 0:
            raise ConfigError(f"task.source: {source.path} is empty.")
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
            raise ConfigError(f"task.source: {source.path} has no rows.") from None
        cause = error.__cause__ or error  # the builders wrap what went wrong in a message that says nothing
        said = next(iter(str(cause).splitlines()), "no reason given")
        raise ConfigError(f"task.source: cannot read {source.path} ({type(cause).__name__}: {said}).") from None


def _header(path: Path, delimiter: str) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        columns = next(csv.reader(stream, delimiter=delimiter), [])
    if len(set(columns)) < len(columns) or not all(columns):
        raise ConfigError(f"task.source: expected a first line with different column names in {path}, got {columns}.")
    return columns


def words_of(value: Any, where: str) -> Sequence[str]:
    """The accepted words in a cell: a text, a list of texts, or nothing.

    Raises:
        InterpError: something else.
    """
    words = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InterpError(f"{where}: expected a text, a list of texts or nothing, got {value!r}.")
    return words

"""What a task reads: a file of rows, a published data set in one file, or a folder of its files."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.tables.choice import FORMATS, Choice
from pipeline.tables.decoding import decoded
from pipeline.tables.facts import Found, joined, of_object, of_rows
from pipeline.tables.json_rows import parse_json
from pipeline.tables.names import is_table_file, suffix_of
from pipeline.tables.published import check_format, check_rows, made, recognised_object, recognised_rows, unknown_keys
from pipeline.tables.reading import read_table
from pipeline.tables.table import Table, TableError

__all__ = ["read_source"]

JSON = (".json", ".jsonl", ".ndjson")


def read_source(path: str | Path, encoding: str = "auto", quoting: str = "auto", choice: Choice | None = None) -> Table:
    """Read rows, as they are or as a published data set.

    Arguments:
        path: a file, or a folder with the files of one data set (JSON and JSON lines, at any depth).
        encoding, quoting: as of `read_table`.
        choice: which format, and what is taken of it; None: whatever the keys say.

    Returns:
        The rows; `written` names the format.

    Raises:
        TableError: it cannot be read, its keys are of no format where they have to be, or it lacks what is chosen.
    """
    choice = choice or Choice()
    return _read(str(path), _digest(Path(path)), encoding, quoting, choice)


@lru_cache(maxsize=2)  # a check and the stage after it, or the jobs of a sweep, read a large file once
def _read(path: str, digest: str, encoding: str, quoting: str, choice: Choice) -> Table:
    table = _rows(path, encoding, quoting, choice)
    if _digest(Path(path)) != digest:
        raise TableError(f"{path} changed while it was read. Start again when it is written.")
    return table


def _digest(path: Path) -> str:
    """Of all that is read of a file or a folder: a table is remembered by what it was made from, not by its name."""
    files = _files(path) if path.is_dir() else [path] if is_table_file(path) else []
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as opened:
                content = hashlib.file_digest(opened, "sha256").digest()
        except (OSError, ValueError):  # the reader says what is wrong
            content = b""
        digest.update(hashlib.sha256(str(file).encode("utf-8", "surrogateescape")).digest() + content)
    return digest.hexdigest()


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles while rows are made: millions of new objects, none of them garbage, take twice as long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def _rows(path: str, encoding: str, quoting: str, choice: Choice) -> Table:
    if choice.format not in ("auto", "table", *FORMATS):
        raise TableError(f"expected format to be one of auto, table, {', '.join(FORMATS)}, got {choice.format!r}.")
    if Path(path).is_dir():
        return _folder(Path(path), encoding, choice)
    content = _object(path, encoding)
    frame = None if content is None else _frame(content, path)
    if content is not None and frame is None:
        if (found := recognised_object(content, path, choice)) is not None:
            return found
        if not _is_row(content):
            raise unknown_keys(path, content)
    table = frame or read_table(path, encoding, quoting)
    recognised = recognised_rows(table, choice)
    if recognised is None:
        check_rows(path, choice)
    return recognised or table


def _object(path: str | Path, encoding: str) -> dict[str, Any] | None:
    """The one object that a JSON file is; None: it is something else, such as rows."""
    if suffix_of(path) != ".json" or not decoded(path, encoding)[0].lstrip().startswith("{"):
        return None
    try:
        content = parse_json(path, encoding)
    except TableError:  # JSON lines, or a mistake: the reader of rows says which
        return None
    assert isinstance(content, dict)
    return content


def _frame(content: dict[str, Any], path: str) -> Table | None:
    """The rows of a table as `DataFrame.to_json` writes it; None: it is none.

    By default column -> number of the row -> cell; with `orient="index"` number -> column -> cell.
    """
    columns = list(content.values())
    if not columns or not all(isinstance(cells, dict) and cells for cells in columns):
        return None
    if all(map(str.isdecimal, content)):
        return Table.from_records(path, columns, [f"row {number}" for number in content], "JSON, rows by number")
    numbers = list(columns[0])
    if not all(map(str.isdecimal, numbers)) or any(list(cells) != numbers for cells in columns):
        return None
    records = [{name: cells[number] for name, cells in content.items()} for number in numbers]
    rows = [f"row {number}" for number in numbers]
    return Table.from_records(path, records, rows, "JSON, a column after the other")


def _is_row(content: dict[str, Any]) -> bool:
    """Whether an object can be one row; else it maps names to rows, or holds a list of them."""
    values = list(content.values())
    nested = all(isinstance(value, dict | list) for value in values)
    return not nested and not any(isinstance(value, list) and dict in map(type, value) for value in values)


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if suffix_of(file) in JSON and file.is_file()]


def _folder(folder: Path, encoding: str, choice: Choice) -> Table:
    files = _files(folder)
    if not files:
        raise TableError(f"{folder} holds no file that ends in {', '.join(JSON)}. Name a file of rows.")
    if choice.format == "table":
        raise TableError(f"{folder} is a folder, and task.format=table reads one file. Name it.")
    parts: list[Found] = []
    for file in files:
        content = _object(file, encoding)
        table = None if content is not None else read_table(file, encoding)
        found = of_rows(table) if table is not None else of_object(content or {}, str(file))
        if found is None:
            raise unknown_keys(str(file), table.columns if table is not None else content or ())
        parts.append(found.inside(file.relative_to(folder)))
    whole = joined(parts, str(folder))
    check_format(whole, choice, str(folder), ())
    return made(whole, str(folder), choice, f"{len(files)} files" if len(files) > 1 else "1 file")

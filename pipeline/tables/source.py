"""What a task reads: a file of rows, a published data set in one file, or a folder of its files."""

from __future__ import annotations

from pathlib import Path

from pipeline.tables.choice import FORMATS, Choice
from pipeline.tables.decoding import decoded
from pipeline.tables.facts import Found, joined, of_object, of_rows
from pipeline.tables.json_rows import parse_json
from pipeline.tables.names import suffix_of
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
    if choice.format not in ("auto", "table", *FORMATS):
        raise TableError(f"expected format to be one of auto, table, {', '.join(FORMATS)}, got {choice.format!r}.")
    if Path(path).is_dir():
        return _folder(Path(path), encoding, choice)
    content = _object(path, encoding)
    if content is not None:
        if (table := recognised_object(content, str(path), choice)) is not None:
            return table
        if not _is_row(content):
            raise unknown_keys(str(path), content)
    table = read_table(path, encoding, quoting)
    recognised = recognised_rows(table, choice)
    if recognised is None:
        check_rows(str(path), choice)
    return recognised or table


def _object(path: str | Path, encoding: str) -> dict[str, object] | None:
    """The one object that a JSON file is; None: it is something else, such as rows."""
    if suffix_of(path) != ".json" or not decoded(path, encoding)[0].lstrip().startswith("{"):
        return None
    try:
        content = parse_json(path, encoding)
    except TableError:  # JSON lines, or a mistake: the reader of rows says which
        return None
    assert isinstance(content, dict)
    return content


def _is_row(content: dict[str, object]) -> bool:
    """Whether an object can be one row; else it maps names to rows, or holds a list of them."""
    values = list(content.values())
    nested = all(isinstance(value, dict | list) for value in values)
    return not nested and not any(isinstance(value, list) and dict in map(type, value) for value in values)


def _folder(folder: Path, encoding: str, choice: Choice) -> Table:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and suffix_of(file) in JSON]
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
        parts.append(found)
    whole = joined(parts, str(folder))
    check_format(whole, choice, str(folder), ())
    return made(whole, str(folder), choice, f"{len(files)} files" if len(files) > 1 else "1 file")

"""Read a table from a path: a file of rows, a published data set in one file, or a folder of its files.

The format is told by the name and by how the content begins.
"""

from __future__ import annotations

import datetime
import gc
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.tables.facts import FORMATS, Choice, Found, joined, of_object, of_rows
from pipeline.tables.json_rows import Literal, json_objects, parse_json
from pipeline.tables.published import check_format, check_rows, made, recognised_object, recognised_rows, unknown_keys
from pipeline.tables.table import SUFFIXES, Cell, Table, TableError, is_table_file, suffix_of
from pipeline.tables.text_files import QUOTING, decoded, file_bytes, read_delimited, read_lines

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["from_arrow", "read_source", "read_table"]


def read_table(path: str | Path, encoding: str = "auto", quoting: str = "auto") -> Table:
    """Read a file of rows.

    Arguments:
        path: the file; taken literally, whatever signs it holds.
        encoding: of its text; `auto`: as the byte-order mark says, else UTF-8.
        quoting: what a cell of CSV and TSV that begins with `"` is: `auto`, `rfc4180` or `none`; see `read_delimited`.

    Returns:
        The table, with at least one row.

    Raises:
        TableError: it cannot be read; the message names file and line.
    """
    if quoting not in QUOTING:
        raise TableError(f"expected quoting to be one of {', '.join(QUOTING)}, got {quoting!r}.")
    named, suffix = str(path), suffix_of(path)
    if Path(path).is_dir():
        raise TableError(f"{path} is a folder. Expected a file that ends in {', '.join(SUFFIXES)}.")
    if suffix not in SUFFIXES:
        if not Path(path).exists():
            raise TableError(f"there is no file {path}. Check the path.")
        raise TableError(f"cannot tell the format of {path}. Expected a name that ends in {', '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        return _parquet(path, named)
    text, written = decoded(path, encoding)
    if not text.strip():
        raise TableError(f"{path} is empty.")
    if suffix == ".txt":
        return read_lines(text, named, written)
    if suffix in (".csv", ".tsv"):
        return read_delimited(text, named, suffix, quoting, written)
    objects, lines, kind = json_objects(text, named)
    if not objects:
        raise TableError(f"{path} has no rows.")
    return Table.from_records(named, objects, lines, ", ".join([kind, *written]))


def _parquet(path: str | Path, named: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    data, zipped = file_bytes(path)
    try:
        table = parquet.ParquetFile(
            io.BytesIO(data)
        ).read()  # the bytes: a path could be taken as an address or a folder
    except (OSError, ValueError, pa.ArrowException) as error:
        said = next(iter(str(error).splitlines()), "no reason given")
        raise TableError(f"cannot read {path} as parquet ({said}).") from None
    if not table.num_rows:
        raise TableError(f"{path} has no rows.")
    return from_arrow(table, named, "parquet, gzip" if zipped else "parquet")


def from_arrow(table: pa.Table, path: str, written: str) -> Table:
    """A typed table from Arrow's.

    Numbers, dates and booleans become the text that says the same: whole numbers without a fraction, also those of a
    column of floating-point numbers (which is what pandas makes of whole numbers where one is missing); other numbers
    with the fewest digits that give the same value of that type; dates as 2020-01-31, with a time of day where one in
    the column has one; booleans as `true` and `false`.

    Arguments:
        table: the rows.
        path, written: as in `Table`.
    """
    columns = [_spelled(column.to_pylist(), column.type) for column in table.columns]
    names = table.column_names
    twice = [place for place, name in enumerate(names) if name in names[:place]]
    once = [place for place in range(len(names)) if place not in twice]
    cells = zip(*(columns[place] for place in once), strict=True)
    records = [dict(zip((names[place] for place in once), row, strict=True)) for row in cells]
    made = Table.from_records(path, records, range(table.num_rows), written)
    if not twice:
        return made
    further = zip(*(columns[place] for place in twice), strict=True)  # Arrow allows a name twice, and no mapping does
    rows = [(*row, *others) for row, others in zip(made.rows, further, strict=True)]
    return replace(made, columns=(*made.columns, *(names[place] for place in twice)), rows=rows)


def _spelled(values: list[Any], kind: pa.DataType) -> list[Cell]:
    """Cells of one type as texts."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _spelled(values, kind.value_type)
    if types.is_struct(kind):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        inner = {name: _spelled([None if v is None else v[name] for v in values], of) for name, of in fields.items()}
        return [{name: inner[name][row] for name in fields} for row in range(len(values))]
    listed = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view)
    if any(is_one(kind) for is_one in listed):
        flat = iter(_spelled([item for value in values for item in value or ()], kind.value_type))
        return [None if value is None else [next(flat) for _ in value] for value in values]
    if types.is_timestamp(kind):
        midnight = all(value is None or value.time() == datetime.time() for value in values)
        return [
            None if value is None else Literal(value.date().isoformat() if midnight else value.isoformat(sep=" "))
            for value in values
        ]
    single = types.is_float32(kind) or types.is_float16(kind)
    return [_text(value, kind, single) for value in values]


def _text(value: Any, kind: pa.DataType, single: bool) -> Cell:
    if value is None or isinstance(value, str | bytes | dict | list):
        return value
    if isinstance(value, bool):
        return Literal("true" if value else "false")
    if isinstance(value, float):
        if value != value:
            return None  # pandas's missing value
        if value.is_integer() and abs(value) < 2**53:
            return Literal(int(value))
        if single:
            import numpy as np

            return Literal(str(np.dtype(kind.to_pandas_dtype()).type(value)))
        return Literal(repr(value))
    return Literal(str(value))


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

"""From a path to a table: which format a file is in, by its name and by how it begins."""

from __future__ import annotations

import datetime
import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.tables.decoding import decoded, file_bytes
from pipeline.tables.delimited import QUOTING, read_delimited, read_lines
from pipeline.tables.json_rows import Literal, json_objects
from pipeline.tables.names import SUFFIXES, suffix_of
from pipeline.tables.table import Cell, Table, TableError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["from_arrow", "read_table"]


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

"""Hold the rows of a file, with notes on what is odd about them, and tell which files are files of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from interp.errors import InterpError, nearest

__all__ = ["SUFFIXES", "Cell", "Note", "Table", "TableError", "is_table_file", "suffix_of"]


# A text; the source text of a number or a boolean (a `Literal`); None where the file has no value; a list of cells, and
# in JSON a list of whatever stands there. Objects inside objects are columns with dotted names.
Cell = Any
NAMED = 30  # columns in a message


class TableError(InterpError):
    """A file that cannot be read as rows. The message names file and line; who calls adds the setting that named it."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a file.

    Arguments:
        path: the file, as messages name it.
        columns: names of the columns, in order; what nobody asks for may be empty or stand twice.
        rows: cells of each row, one per column.
        lines: where each row begins in the file: the line, counted from 1; without lines, the number of the row from 0
            on; or a text that says where (`france.json, sample 3`).
        written: how the file is written, for people (`CSV, separated by ';', latin-1, gzip`).
        typed: whether the format has lists, numbers and missing values of its own (JSON, parquet), so that a text is
            a text and never stands for one of them.
        notes: what its reader should know.
    """

    path: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    lines: Sequence[int | str]
    written: str
    typed: bool = False
    notes: tuple[Note, ...] = ()

    def index(self, column: str) -> int:
        """Where a column stands.

        Raises:
            TableError: there is no such column, or several; the message names those that there are.
        """
        places = [place for place, name in enumerate(self.columns) if name == column]
        if len(places) == 1:
            return places[0]
        named = ", ".join(map(repr, self.columns[:NAMED])) + (", ..." if len(self.columns) > NAMED else "")
        if places:
            raise TableError(
                f"{self.path} has {len(places)} columns {column!r}, expected different column names, got {named}. "
                "Rename all but the one that is meant."
            )
        raise TableError(f"{self.path} has no column {column!r}, it has {named}.{self.hint(column)}")

    def hint(self, column: str) -> str:
        """The sentences that help where a column is missing: the nearest names, and lines on top that were left out."""
        skipped = "".join(f" {note.count} {note.what}." for note in self.notes if "on top" in note.what)
        alone = " A text file holds prompts alone: task.target_columns=[]." if self.written.startswith("text") else ""
        return nearest(column, self.columns) + skipped + alone

    def where(self, row: int) -> str:
        """A row as messages name it: `own.csv, line 7`."""
        return f"{self.path}, {self.place(row)}"

    def place(self, row: int) -> str:
        """Where a row stands in the file: `line 7`."""
        line = self.lines[row]
        if isinstance(line, str):
            return line
        return f"{'row' if self.written.startswith(('parquet', 'dataset')) else 'line'} {line}"

    def noted(self, *notes: Note) -> Table:
        """The same table with further notes; those that count nothing are left out."""
        return replace(self, notes=(*self.notes, *(note for note in notes if note.count)))

    @classmethod
    def from_records(
        cls, path: str, records: Iterable[dict[str, Cell]], lines: Sequence[int | str], written: str
    ) -> Table:
        """A typed table from one mapping a row; columns stand in the order in which they first occur.

        Arguments:
            path, lines, written: as above.
            records: column -> cell; a column that a row lacks is None there. Mappings in a cell become columns with
                dotted names.
        """
        flat = [_flat(record) for record in records]
        columns = tuple(dict.fromkeys(chain.from_iterable(flat)))
        rows = [tuple(map(record.get, columns)) for record in flat]
        return cls(path, columns, rows, lines, written, typed=True)


def _flat(record: dict[str, Cell]) -> dict[str, Cell]:
    """A row whose objects are dotted names; a key that the file spells with dots goes before a nested one."""
    if dict not in map(type, record.values()):
        return record
    nested: list[tuple[int, str, Cell]] = []
    left = [(0, key, value) for key, value in reversed(record.items())]
    while left:  # by hand: a file may be nested deeper than Python calls
        depth, name, value = left.pop()
        if isinstance(value, dict):
            left += [(depth + 1, f"{name}.{key}", inner) for key, inner in reversed(value.items())]
        else:
            nested.append((depth, name, value))
    flat: dict[str, Cell] = {}
    own = {name for depth, name, _ in nested if depth == 0}
    for depth, name, value in nested:
        if depth == 0 or name not in own:
            flat[name] = value
    return flat


SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")  # in any case; `.gz` may follow


def suffix_of(path: str | Path) -> str:
    """The suffix that tells a file's format, in small letters: `.csv` of `Own.CSV.gz`."""
    return Path(Path(path).name.lower().removesuffix(".gz")).suffix


def is_table_file(path: str | Path) -> bool:
    """Whether a path is named as a file of rows."""
    return suffix_of(path) in SUFFIXES


@dataclass(frozen=True, slots=True)
class Note:
    """Something odd about data that can be read.

    Arguments:
        what: as it follows its count in a sentence (`blank lines left out`).
        count: how often; 1 for what holds for the file as a whole.
        examples: a few of them, with their lines.
    """

    what: str
    count: int = 1
    examples: tuple[str, ...] = ()

"""Decode text files (compression, byte-order marks, encodings) and split CSV and its kin into cells.

A quote sign opens a quoted cell as in RFC 4180, and not where it is text:

    prompt,target                         a header, which says how many cells a row has
    "Paris, in France, is",nice           a quoted cell: its closing sign stands before the delimiter or the line's end
    "Yes," she said and left;fine         text that begins with a quote sign (here between semicolons)
    "A cell of
    two lines",fine                       joined, for only so does the row have the header's cells

A library's reader joins all lines from a cell that begins with a quote sign up to the next such sign, and reads a row
that is longer than the header from its second cell on. Here a row has the header's cells, or is an error.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.tables.table import Note, Table, TableError

__all__ = ["QUOTING", "check_encoding", "decoded", "file_bytes", "read_delimited", "read_lines"]


QUOTING = ("auto", "rfc4180", "none")
DELIMITERS = ",;\t|"
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
QUOTED = re.compile(r'"(?:[^"]|"")*"')
SHOWN = 60  # characters of a line in a message
EXAMPLES = 3


def read_delimited(text: str, path: str, suffix: str, quoting: str, written: Sequence[str]) -> Table:
    """Read the rows of a CSV or TSV file.

    Arguments:
        text: the file's.
        path: the file, for messages.
        suffix: `.csv`, whose delimiter is the sign of `,`, `;`, tab and `|` that the header has and that all rows fit;
            or `.tsv`.
        quoting: what a cell that begins with `"` is: `rfc4180`: quoted; `none`: text; `auto`: quoted where its closing
            sign stands before a delimiter or the end of the line, over several lines only where the row then has the
            header's cells; else text.
        written: how the file is encoded.

    Raises:
        TableError: no header, no rows, a row of another width than the header; the message names the line.
    """
    lines, ends = _lines(text, table=True)
    first = 0
    while first < len(lines) and (not lines[first] or lines[first].startswith("#")):
        first += 1
    comments = sum(line.startswith("#") for line in lines[:first])
    if first == len(lines):
        raise TableError(f"{path} has no header" + (", only lines that begin with #." if comments else "."))
    declared = re.fullmatch(r'("?)sep=(.)\1', lines[first], re.IGNORECASE)  # the line that spreadsheets write
    first += declared is not None
    if first == len(lines):
        raise TableError(f"{path} has no header.")
    if suffix == ".tsv":
        candidates = ["\t"]
    elif declared:
        candidates = [declared[2]]
    else:
        unquoted = QUOTED.sub("", lines[first])
        candidates = sorted((sign for sign in DELIMITERS if sign in unquoted), key=lambda sign: -unquoted.count(sign))
    tried = [_Rows(lines, ends, path, sign, quoting) for sign in candidates or [","]]
    errors: list[TableError] = []
    for rows in tried:
        try:
            rows.read(first)
            break
        except TableError as error:
            errors.append(error)
    else:
        raise errors[0]
    if not rows.rows:
        raise TableError(f"{path} has no rows.")
    columns = tuple(name.strip() for name in rows.header)
    padded = sum(name != given for name, given in zip(columns, rows.header, strict=True))
    kind = "TSV" if suffix == ".tsv" else "CSV"
    between = "" if rows.delimiter == ("\t" if kind == "TSV" else ",") else f"separated by {_named(rows.delimiter)}"
    opened = [(number, cell) for number, cell in sorted(rows.literal) if cell.lstrip(" ").startswith('"')]
    hashed = [line for line, row in zip(rows.starts, rows.rows, strict=True) if (row[0] or "").startswith("#")]
    on_top = tuple(line[:SHOWN] for line in lines[:first] if line.startswith("#"))
    examples = tuple(f"line {number}: {cell[:SHOWN]!r}" for number, cell in opened[:EXAMPLES])
    joined = tuple(f"lines {start} to {last}" for start, last in rows.joined[:EXAMPLES])
    table = Table(path, columns, rows.rows, rows.starts, ", ".join(filter(None, [kind, between, *written])))
    return table.noted(
        Note("comment lines on top left out", comments, on_top[:EXAMPLES]),
        Note("column names without the spaces around them", padded),
        Note("blank lines left out", rows.blank),
        Note(
            "rows that begin with # as the comment lines on top do, and are read as rows",
            len(hashed) if comments else 0,
            tuple(f"line {line}" for line in hashed[:EXAMPLES]),
        ),
        Note("rows of several lines, by quote signs (task.quoting)", len(rows.joined), joined),
        Note("cells that begin with a quote sign and are text, not quoted (task.quoting)", len(opened), examples),
    )


def read_lines(text: str, path: str, written: Sequence[str]) -> Table:
    """Read a text file with a prompt a line, as the column `prompt`; a line is taken as it is.

    Raises:
        TableError: all lines are blank.
    """
    lines, _ = _lines(text, table=False)
    kept = [number for number, line in enumerate(lines) if line]
    if not kept:
        raise TableError(f"{path} has no rows.")
    written = ", ".join(["text, a prompt a line", *written])
    table = Table(path, ("prompt",), [(lines[number],) for number in kept], [number + 1 for number in kept], written)
    return table.noted(Note("blank lines left out", len(lines) - len(kept)))


def _lines(text: str, table: bool) -> tuple[list[str], list[str]]:
    """Lines and what ends each: `\\n` or `\\r\\n`; `\\r` alone where a table's first line or a whole text has it."""
    if "\n" not in text or (table and re.match(r"[^\r\n]*\r(?!\n)", text)):
        lines, end = text.split("\r"), "\r"
        ends = [end] * len(lines)
    else:
        raw = text.split("\n")
        lines = [line[:-1] if line.endswith("\r") else line for line in raw]
        ends = ["\r\n" if line.endswith("\r") else "\n" for line in raw]
    if not lines[-1]:
        lines.pop()
    return lines, ends


def _named(delimiter: str) -> str:
    return NAMES.get(delimiter, repr(delimiter))


@dataclass
class _Rows:
    """The rows of one file by one delimiter, and what was met on the way."""

    lines: Sequence[str]
    ends: Sequence[str]
    path: str
    delimiter: str
    quoting: str
    header: list[str] = field(default_factory=list)
    rows: list[tuple[str | None, ...]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    blank: int = 0
    literal: list[tuple[int, str]] = field(default_factory=list)  # (line, cell) of text that holds quote signs
    joined: list[tuple[int, int]] = field(default_factory=list)  # (line, last line) of rows of several lines
    needed: int = 0  # quoted cells that hold a delimiter, a quote sign or the end of a line: somebody wrote by rules
    padded: bool = False  # columns are aligned by spaces, which then also stand behind closing quote signs
    led: bool = False  # a space stands behind each delimiter, and so before opening quote signs

    def __post_init__(self) -> None:
        self.quoted = self._pattern()

    def _pattern(self) -> re.Pattern[str]:
        before, after = " *" if self.led else "", " *" if self.padded else ""
        return re.compile(rf'{before}"([^"]*(?:""[^"]*)*)"{after}(?={re.escape(self.delimiter)}|\Z)')

    def read(self, first: int) -> None:
        """Read all from the header's line on."""
        bare = QUOTED.sub("", self.lines[first])
        self.led = re.search(re.escape(self.delimiter) + " ", bare) is not None
        quoted = self._spanning(first) if self.quoting != "none" else None
        self.header, at = quoted or (self.lines[first].split(self.delimiter), first + 1)
        self.padded = any(name.endswith(" ") for name in self.header)
        self.quoted = self._pattern()
        doubtful: list[tuple[int, int, int]] = []  # (place in rows, line, next line): see `_record`
        while at < len(self.lines):
            if not self.lines[at] or (len(self.header) > 1 and not self.lines[at].strip(" ")):
                self.blank += 1
                at += 1
                continue
            cells, after, doubt = self._record(at)
            self.joined += [(at + 1, after)] if after > at + 1 else []
            if doubt:
                doubtful.append((len(self.rows), at, after))
            self._keep(cells, at)
            at = after
        by_rules, as_text = self.needed > 0, bool(self.literal)
        for place, start, after in reversed(doubtful):  # from the end on, so that places before stay what they are
            if by_rules and not as_text:
                break
            if by_rules or not as_text:
                raise TableError(
                    f"{self.path}, line {start + 1}: cannot tell whether {self._shown(start)} begins a quoted cell "
                    f"that goes on to line {after}, or rows whose text holds quote signs. Say which: "
                    "task.quoting=rfc4180 or task.quoting=none."
                )
            self.joined.remove((start + 1, after))
            alone = [line for line in range(start, after) if self.lines[line]]
            read = [self._on_a_line(line) for line in alone]
            self.rows[place : place + 1] = [tuple(cell or None for cell in cells) for cells, _ in read]
            self.starts[place : place + 1] = [line + 1 for line in alone]
            self.literal += [(line + 1, cell) for line, (_, cells) in zip(alone, read, strict=True) for cell in cells]
            self.blank += after - start - len(alone)

    def _keep(self, cells: Sequence[str], at: int) -> None:
        self.rows.append(tuple(cell or None for cell in cells))  # an empty cell is no value
        self.starts.append(at + 1)

    def _record(self, at: int) -> tuple[list[str], int, bool]:
        """The cells that begin in a line, the line after them, and whether another reading fits as well."""
        line = self.lines[at]
        if self.quoting == "none" or '"' not in line:
            return self._of_width(line.split(self.delimiter), at), at + 1, False
        spanning = self._spanning(at)
        if self.quoting == "rfc4180":
            if spanning is None:
                raise TableError(
                    f"{self.path}, line {at + 1}: expected quoted cells by RFC 4180 (a quote sign inside one is "
                    f"written twice), got {self._shown(at)}. Mend the line, or set task.quoting=auto."
                )
            return self._of_width(spanning[0], at), spanning[1], False
        width = len(self.header)
        cells, literal = self._on_a_line(at)
        if spanning is not None and spanning[1] > at + 1 and len(spanning[0]) == width:
            after = spanning[1]
            doubt = all(not self.lines[n] or len(self._on_a_line(n)[0]) == width for n in range(at, after))
            self.needed += not doubt
            return spanning[0], after, doubt
        self._of_width(cells, at)
        self.literal += [(at + 1, cell) for cell in literal]
        self.needed += any(self.delimiter in cell for cell in cells) or sum('"' in c for c in cells) > len(literal)
        return cells, at + 1, False

    def _spanning(self, at: int) -> tuple[list[str], int] | None:
        """The cells of a line by RFC 4180, perhaps of several lines, and the line after; None: it breaks the rules."""
        cells, after, place = [], at + 1, 0
        line = self.lines[at]
        while True:
            opening = place
            while self.led and line.startswith(" ", opening):
                opening += 1
            if line.startswith('"', opening):
                parts: list[str] = []
                place = opening + 1
                while True:
                    quote = line.find('"', place)
                    if quote < 0:
                        if after == len(self.lines):
                            return None
                        parts += [line[place:], self.ends[after - 1]]
                        line, place, after = self.lines[after], 0, after + 1
                        continue
                    parts.append(line[place:quote])
                    place = quote + 1
                    if not line.startswith('"', place):
                        break
                    parts.append('"')
                    place += 1
                cells.append("".join(parts))
                while self.padded and line.startswith(" ", place):
                    place += 1
                if place < len(line) and line[place] != self.delimiter:
                    return None
            else:
                end = line.find(self.delimiter, place)
                cells.append(line[place : end if end >= 0 else len(line)])
                place = end if end >= 0 else len(line)
            if place == len(line):
                return cells, after
            place += 1

    def _on_a_line(self, at: int) -> tuple[list[str], list[str]]:
        """The cells of one line, and those among them that are text and hold a quote sign."""
        line, cells, literal, place = self.lines[at], [], [], 0
        while True:
            match = self.quoted.match(line, place)
            if match:
                cells.append(match[1].replace('""', '"'))
                place = match.end()
            else:
                end = line.find(self.delimiter, place)
                place, start = end if end >= 0 else len(line), place
                cells.append(line[start:place])
                if '"' in cells[-1]:
                    literal.append(cells[-1])
            if place == len(line):
                return cells, literal
            place += 1

    def _of_width(self, cells: list[str], at: int) -> list[str]:
        width = len(self.header)
        if len(cells) == width:
            return cells
        named, sign = ", ".join(map(repr, self.header[:8])), _named(self.delimiter)
        remedy = (
            "Remove the delimiter at the line's end, here and in the rows after it, or name the column in the header."
            if len(cells) == width + 1 and not cells[-1]
            else "Put a cell that holds the delimiter between quote signs, and write each row with the header's cells."
        )
        raise TableError(
            f"{self.path}, line {at + 1}: expected {width} cell{'s' * (width > 1)} between {sign}, as the header has "
            f"({named}), got {len(cells)}: {self._shown(at)}. {remedy}"
        )

    def _shown(self, at: int) -> str:
        line = self.lines[at]
        return repr(line if len(line) <= SHOWN else line[:SHOWN] + "…")


GZIP = b"\x1f\x8b"
MARKS = {  # the longer ones first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
OTHERS = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet: save it as CSV)",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"version https://git-lfs": "a pointer of Git LFS (`git lfs pull` brings the file)",
}


def check_encoding(encoding: str) -> None:
    """Check the name of an encoding.

    Raises:
        TableError: Python knows no such encoding of text.
    """
    if encoding == "auto":
        return
    try:
        "a".encode(encoding)
    except (LookupError, UnicodeError, ValueError):
        raise TableError(
            f"expected auto, or an encoding such as utf-16, latin-1, cp1252, shift_jis or gb18030, got {encoding!r}."
        ) from None


def file_bytes(path: str | Path) -> tuple[bytes, bool]:
    """The content of a file, and whether it was compressed by gzip.

    Arguments:
        path: the file, taken literally.

    Raises:
        TableError: there is none, it cannot be read, or it is empty, damaged, or packed in another way.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise TableError(f"there is no file {path}. Check the path.") from None
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        raise TableError(f"cannot read {path} ({error}).") from None
    zipped = data.startswith(GZIP)
    if zipped:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise TableError(f"{path} begins as a gzip file and is damaged ({error}). Fetch it again.") from None
    if not data:
        raise TableError(f"{path} is empty.")
    for start, what in OTHERS.items():
        if data.startswith(start):
            raise TableError(f"{path} is {what}. Expected text, plain or compressed by gzip.")
    return data, zipped


def decoded(path: str | Path, encoding: str = "auto") -> tuple[str, list[str]]:
    """The text of a file, and how it was written where that is not plain UTF-8 (`gzip`, `utf-16-le`).

    Arguments:
        path: the file, taken literally.
        encoding: of its text; `auto`: as the byte-order mark says, else UTF-8.

    Raises:
        TableError: it cannot be read, or not by that encoding; the message says which to try.
    """
    check_encoding(encoding)
    data, zipped = file_bytes(path)
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    named = MARKS[mark] if mark else "utf-8" if encoding == "auto" else encoding
    if mark and encoding != "auto" and not named.startswith(codecs.lookup(encoding).name.removesuffix("-sig")):
        raise TableError(
            f"{path} begins with the byte-order mark of {named}, not of {encoding}. Set task.encoding=auto."
        )
    try:
        text = data[len(mark) :].decode(named)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte {data[len(mark) + error.start : len(mark) + error.start + 1].hex()} in line {line}"
        raise TableError(
            f"{path} is not written in {named} ({byte}). Say how it is written: task.encoding=latin-1 (or cp1252, "
            "utf-16, shift_jis, gb18030, ...)."
        ) from None
    if encoding == "auto" and not mark and text.count("\0") > len(text) // 4:
        order = "le" if data[1::2].count(0) >= data[::2].count(0) else "be"
        raise TableError(f"{path} seems to be UTF-16 without a byte-order mark. Set task.encoding=utf-16-{order}.")
    return text, [*([named] if named != "utf-8" else []), *(["gzip"] if zipped else [])]

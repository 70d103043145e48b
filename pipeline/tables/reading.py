"""From a path to a table: what the bytes are, and which format they are in."""

from __future__ import annotations

from pathlib import Path

from pipeline.tables.table import Table

__all__ = ["SUFFIXES", "read_table"]

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")  # in any case; `.gz` may follow


def read_table(path: str | Path, encoding: str = "auto", quoting: str = "auto") -> Table:
    """Read a file of rows.

    Arguments:
        path: the file; taken literally, whatever signs it holds.
        encoding: of its text; `auto`: as the byte-order mark says, else UTF-8.
        quoting: what a cell of CSV and TSV that begins with `"` is: `auto`, `rfc4180` or `none`.

    Returns:
        The table.

    Raises:
        TableError: it cannot be read; the message names file and line.
    """
    raise NotImplementedError

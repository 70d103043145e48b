"""Which files are files of rows, by their names."""

from __future__ import annotations

from pathlib import Path

__all__ = ["SUFFIXES", "is_table_file", "suffix_of"]

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")  # in any case; `.gz` may follow


def suffix_of(path: str | Path) -> str:
    """The suffix that tells a file's format, in small letters: `.csv` of `Own.CSV.gz`."""
    return Path(Path(path).name.lower().removesuffix(".gz")).suffix


def is_table_file(path: str | Path) -> bool:
    """Whether a path is named as a file of rows."""
    return suffix_of(path) in SUFFIXES

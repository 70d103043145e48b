"""Files of rows, read by their own rules and not by a library's guess: CSV, TSV, text, JSON, JSON lines, parquet.

The check of a config and the stage `tokenize` read a file through the same function, so that they cannot disagree.
"""

from pipeline.tables.json_rows import Literal, parse_json
from pipeline.tables.reading import SUFFIXES, read_table
from pipeline.tables.table import Cell, Note, Table, TableError

__all__ = ["SUFFIXES", "Cell", "Literal", "Note", "Table", "TableError", "parse_json", "read_table"]

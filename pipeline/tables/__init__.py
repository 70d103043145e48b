"""Files of rows, read by their own rules and not by a library's guess: CSV, TSV, text, JSON, JSON lines, parquet.

The check of a config and the stage `tokenize` read a file through the same function, so that they cannot disagree.
"""

from pipeline.tables.decoding import check_encoding
from pipeline.tables.delimited import QUOTING
from pipeline.tables.json_rows import Literal, parse_json
from pipeline.tables.list_cells import listed_in
from pipeline.tables.published import FORMATS, STARTS, Choice, hint
from pipeline.tables.reading import SUFFIXES, from_arrow, is_table_file, read_table
from pipeline.tables.sentences import Sentence, read_sentences
from pipeline.tables.source import read_source
from pipeline.tables.table import Cell, Note, Table, TableError

__all__ = [
    "FORMATS", "QUOTING", "STARTS", "SUFFIXES", "Cell", "Choice", "Literal", "Note", "Sentence", "Table", "TableError",
    "check_encoding", "from_arrow", "hint", "is_table_file", "listed_in", "parse_json", "read_sentences", "read_source",
    "read_table",
]  # fmt: skip

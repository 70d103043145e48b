"""Read files of rows by their own rules, not by a library's guess: CSV, TSV, text, JSON, JSON lines, parquet.

The check of a config and the stage `tokenize` read a file through the same function, so that they cannot disagree. This
face imports nothing, so that a stage that only asks whether a path is such a file does not depend on the readers.
"""

"""Word lists as their papers ship them: concepts, and the words of each in several languages.

| list | columns | paper |
|---|---|---|
| a file a language, or a folder of them | `lang`, `word_original` (English), `word_translation` | Wendler et al. 2024 |
| one file for all languages | a language code each, lists of synonyms; `word_original` | Dumas et al. 2025 |
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from interp.prompts.templates import LANGUAGE_NAMES
from pipeline.tables.json_rows import listed_in
from pipeline.tables.reading import read_table
from pipeline.tables.table import Cell, Note, Table, TableError, suffix_of

__all__ = ["WordList", "is_word_list", "read_word_list"]

SUFFIXES = (".csv", ".tsv")
CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z]{2,4})?")
ONE_LANGUAGE = {"lang", "word_original", "word_translation"}
CLEANED = "blank_prompt_translation_masked"  # the files of Wendler et al. that their results are from have it
ENGLISH = "en"


@dataclass(slots=True)
class WordList:
    """Concepts in the order of the file.

    Arguments:
        languages: code -> the language's name in that language.
        concepts: name of a concept -> code -> its words, best first; a language may be missing.
        written: the format, for people.
        notes: what a reader should know.
    """

    languages: dict[str, str] = field(default_factory=dict)
    concepts: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    written: str = ""
    notes: tuple[Note, ...] = ()


def is_word_list(path: Path) -> bool:
    """Whether a path is a folder or a table, and so no lexicon in JSON."""
    return path.is_dir() or suffix_of(path) in SUFFIXES


def read_word_list(path: Path, encoding: str = "auto") -> WordList:
    """Read a published word list.

    Arguments:
        path: a file, or a folder with a file a language, at any depth.
        encoding: of their text; `auto`: as the byte-order mark says, else UTF-8.

    Raises:
        TableError: it cannot be read, or its columns are of no known list.
    """
    files = [file for file in sorted(path.rglob("*")) if suffix_of(file) in SUFFIXES] if path.is_dir() else [path]
    tables = [read_table(file, encoding) for file in files]
    single = [table for table in tables if _named(table) >= ONE_LANGUAGE]
    if single:
        return _by_file(single, path, len(tables))
    several = [table for table in tables if len(_codes(table)) > 1]
    if len(several) != 1:
        came = f"{len(several)} such files; name one of them" if several else _shown(tables)
        raise TableError(
            f"{path}: expected one table whose columns are language codes (de, fr, ...; word_original names the "
            f"concept), or tables with the columns lang, word_original and word_translation, got {came}. A lexicon of "
            "your own is a JSON file; the README shows one."
        )
    return _by_column(several[0])


def _named(table: Table) -> set[str]:
    return {column.strip() for column in table.columns}


def _codes(table: Table) -> dict[str, int]:
    """Language code -> its column."""
    return {name.strip(): place for place, name in enumerate(table.columns) if CODE.fullmatch(name.strip())}


def _shown(tables: list[Table]) -> str:
    return ", ".join(map(repr, tables[0].columns[:8])) if tables else "no table"


def _by_file(tables: list[Table], path: Path, files: int) -> WordList:
    """Wendler et al.: a row gives the English word and its translation into the file's language."""
    cleaned = [table for table in tables if CLEANED in _named(table)] or tables
    made = WordList()
    twice = empty = 0
    for table in cleaned:
        places = {name.strip(): place for place, name in enumerate(table.columns)}
        for row in table.rows:
            code, english, word = (_text(row[places[name]]) for name in ("lang", "word_original", "word_translation"))
            if not code or not english or not word:
                empty += 1
                continue
            words = made.concepts.setdefault(english, {ENGLISH: [english]})
            twice += code in words and words[code] != [word]
            words.setdefault(code, [word])
    used = {code for words in made.concepts.values() for code in words}
    made.languages = {code: LANGUAGE_NAMES.get(code, code) for code in sorted(used)}
    return _described(
        made,
        "word list (Wendler et al.)",
        Note("files left out (no cleaned word list)", files - len(cleaned)),
        Note("rows without a word, left out", empty),
        Note("rows that translate a word again, left out", twice),
    )


def _by_column(table: Table) -> WordList:
    """Dumas et al.: a column for each language, a list of synonyms in each cell."""
    codes = _codes(table)
    names = next((place for place, name in enumerate(table.columns) if name.strip() == "word_original"), None)
    made = WordList(languages={code: LANGUAGE_NAMES.get(code, code) for code in codes})
    repeated = 0
    for number, row in enumerate(table.rows):
        words = {code: _words(row[place], table.where(number)) for code, place in codes.items()}
        words = {code: listed for code, listed in words.items() if listed}
        name = _text(row[names]) if names is not None else next(iter(words.values()), [""])[0]
        if not words or not name:
            continue
        times = 1
        while (unique := name if times == 1 else f"{name} ({times})") in made.concepts:
            times += 1
        repeated += times > 1
        made.concepts[unique] = words
    return _described(
        made,
        "word list (Dumas et al.)",
        Note("concepts whose name stands twice, told apart by a number", repeated),
        Note("rows without a word, left out", len(table.rows) - len(made.concepts)),
    )


def _described(made: WordList, name: str, *notes: Note) -> WordList:
    made.written = f"{name}: {len(made.languages)} languages, {len(made.concepts)} concepts"
    unnamed = [code for code, known in made.languages.items() if code == known]
    notes += (Note("languages whose name is not known; prompts use the code", len(unnamed), tuple(unnamed[:3])),)
    made.notes = tuple(note for note in notes if note.count)
    return made


def _text(cell: Cell) -> str:
    return cell.strip() if isinstance(cell, str) else ""


def _words(cell: Cell, where: str) -> list[str]:
    """The distinct words of a cell: a list, a list as text, or one word."""
    if isinstance(cell, str):
        listed = listed_in(cell, where)
        cell = [cell] if listed is None else listed
    return list(dict.fromkeys(_text(word) for word in cell or () if _text(word)))

"""Take prompts from the rows of a user's table: a file (see `pipeline.tables`) or a data set on the hub.

A row that cannot be used is left out and counted, with the reason; what makes the whole source unusable is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from interp.errors import InterpError
from interp.prompts import find_word, other_form
from pipeline.config.paths import located
from pipeline.config.section import ConfigError
from pipeline.tables.facts import ASKED, STARTS, Choice
from pipeline.tables.json_rows import Literal, listed_in
from pipeline.tables.published import check_rows, formats_hint
from pipeline.tables.reading import from_arrow, read_source
from pipeline.tables.table import SUFFIXES, Cell, Note, Table, TableError, is_table_file
from pipeline.tasks.build import Findings, shortened

__all__ = ["BLANK", "Rows", "Source", "Subjects", "check_columns", "filled"]


BLANK = "{}"  # where a prompt has its subject filled in


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from, and how its text is read.

    Arguments:
        path: a file, or a dataset id on the hub.
        name, split, revision: of a hub dataset.
        encoding, quoting: of a file; see `pipeline.tables.read_table`.
        list_cells: which texts that spell a list (`['Buch', 'Band']`) are lists of accepted answers: `text`: none;
            `auto`: those of formats that have no lists of their own (CSV, TSV, text); `always`: also those of others.
        choice: what is taken of a published data set.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    encoding: str = "auto"
    quoting: str = "auto"
    list_cells: str = "auto"
    choice: Choice = field(default_factory=Choice)


class Rows:
    """The rows that are used, with the columns that are used.

    Arguments:
        source: where they come from.
        columns: setting of the section `task` -> the columns that it names.
        max_rows: how many rows at most, in order; None: all.
        table: the rows, where they are read already; None: they are read here.

    Attributes:
        total: how many rows there are in all.
        read_as: how the source is written, for people.
        findings: what was odd about the rows.
        used: how many of them, from the first on, are looked at.
        dropped: how many of those were left out.

    Raises:
        ConfigError: the source cannot be read, has no rows, or lacks a column.
    """

    def __init__(
        self,
        source: Source,
        columns: Mapping[str, Sequence[str]],
        max_rows: int | None,
        table: Table | None = None,
    ) -> None:
        for setting, named in columns.items():
            if len(set(named)) < len(named):
                raise ConfigError(f"task.{setting}: expected different columns, got {list(named)}.")
        if max_rows is not None and max_rows < 1:
            raise ConfigError(f"task.max_prompts: expected at least 1, got {max_rows}.")
        self._source, self._table = source, table or _table(source, columns)
        self._places: dict[str, int] = {}
        for setting, named in columns.items():
            for column in named:
                try:
                    self._places[column] = self._table.index(column)
                except TableError as error:
                    raise ConfigError(f"task.{setting}: {error}{formats_hint(self._table)}") from None
        known = [STARTS[column] for column in self._places if column in STARTS]
        for marks in [*known, *([ASKED] if STARTS["prompt"] in known else [])]:
            if self._table.columns.count(marks) == 1:
                self._places[marks] = self._table.index(marks)
        self.total = len(self._table.rows)
        self.used = self.total if max_rows is None else min(max_rows, self.total)
        self.read_as = self._table.written
        self.findings = Findings()
        self.dropped = 0

    def __iter__(self) -> Iterator[tuple[str, dict[str, Cell]]]:
        """Each row: its place in the source, and column -> cell."""
        for number in range(self.used):
            cells = self._table.rows[number]
            yield self._table.where(number), {column: cells[place] for column, place in self._places.items()}

    def notes(self) -> tuple[Note, ...]:
        """What was odd about the file, and about its rows."""
        return (*self._table.notes, *self.findings.notes())

    def check_left(self, kept: int) -> None:
        """Check that rows are left.

        Raises:
            InterpError: all were left out; the message says why, with examples.
        """
        if kept == 0:
            told = "; ".join(f"{note.count} {note.what} ({note.examples[0]})" for note in self.findings.notes())
            raise InterpError(f"{self._source.path}: of {self.used} rows none is left: {told}.")

    def drop(self, where: str, why: str, shown: str = "") -> None:
        """Leave a row out.

        Arguments:
            where: the row.
            why: what is wrong with it, as it follows `rows` (`without a prompt`).
            shown: the text in question.
        """
        self.dropped += 1
        self.find(f"rows {why}, left out", where, shown)

    def find(self, what: str, where: str, shown: str = "") -> None:
        """Count a finding; its example names the line alone: what a stage writes holds no path of a machine."""
        line = where.removeprefix(f"{self._source.path}, ")
        self.findings.add(what, f"{line}{f' {shortened(shown)}' if shown else ''}")

    def text(self, values: Mapping[str, Cell], column: str, where: str, what: str) -> str | None:
        """The text of a cell that a row cannot do without; None: there is none that can be meant, the row is dropped.

        Arguments:
            values: the row.
            column: of the text.
            where: the row, for messages.
            what: the text in the reason (`prompt`).

        Raises:
            InterpError: something else than a text stands there.
        """
        value = values[column]
        if value is None or (isinstance(value, str) and not value):
            self.drop(where, f"without a {what}")
        elif not isinstance(value, str) or isinstance(value, Literal):
            shown = value if isinstance(value, Literal) else repr(value)
            raise InterpError(
                f"{where}: expected a text in column {column!r}, got {shown}. Name another column, or write "
                "it as a text."
            )
        elif not value.strip():
            self.drop(where, f"whose {what} is space alone", value)
        elif "\0" in value:
            self.drop(where, f"whose {what} holds a NUL", value)
        else:
            return value
        return None

    def words(self, values: Mapping[str, Cell], column: str, where: str) -> list[str]:
        """The accepted words in a cell: a text, a number or a boolean by its source text, a list of those, or nothing.

        Raises:
            InterpError: something else stands there.
        """
        value = values[column]
        if isinstance(value, str) and not isinstance(value, Literal):
            value = self._listed(value, column, where)
        words = value if isinstance(value, list) else [value]
        words = [word for word in words if word is not None]
        if not all(isinstance(word, str) for word in words):
            raise InterpError(
                f"{where}, column {column!r}: expected a text, a number, a list of those or nothing, got {value!r}."
            )
        kept = [str(word) for word in dict.fromkeys(words) if "\0" not in word]
        if len(kept) < len(set(words)):
            self.find("cells with an answer that holds a NUL, which is left out", where)
        return kept

    def _listed(self, text: str, column: str, where: str) -> str | list[str]:
        """The list that a text spells, where such texts are lists; else the text."""
        choice = self._source.list_cells
        if choice == "text" or not text.lstrip().startswith("["):
            return text
        if choice == "auto" and self._table.typed:  # a format with lists of its own
            self.find(f"texts of column {column!r} that begin like a list and are one answer", where, text)
            return text
        words = listed_in(text, f"{where}, column {column!r}")
        if words is None:
            return text
        self.find(f"cells of column {column!r} read as lists of answers (task.list_cells)", where, text)
        return words

    def start(self, values: Mapping[str, Cell], column: str, word: str) -> int | None:
        """Where a word begins in a prompt, if the source says so and it does stand there; None: it does not say.

        Arguments:
            values: the row.
            column: of the prompt.
            word: the word.
        """
        start = values.get(STARTS.get(column, ""))
        if isinstance(start, str) and start.isdecimal() and values[column].startswith(word, int(start)):
            return int(start)
        return None

    def asked(self, values: Mapping[str, Cell], column: str) -> int:
        """Where a prompt begins after the solved examples that a data set was given; 0 where it has none."""
        start = values.get(ASKED) if STARTS.get(column) == STARTS["prompt"] else None
        return int(start) if isinstance(start, Literal) and start.isdecimal() else 0

    def labels(self, values: Mapping[str, Cell], columns: Sequence[str]) -> dict[str, str]:
        """Labels by their source text; empty where a row has none."""
        return {column: _label(values[column]) for column in columns}


def _label(value: Any) -> str:
    if value is None or isinstance(value, str):
        return str(value or "")
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)


def filled(prompt: str, subject: str) -> tuple[str, tuple[int, int] | None]:
    """A prompt with its subject in place of `{}`.

    Returns:
        The text, and the characters of the subject where it was filled in last; None where there is no `{}`.
    """
    before, blank, after = prompt.rpartition(BLANK)
    if not blank:
        return prompt, None
    before = before.replace(BLANK, subject)
    return before + subject + after, (len(before), len(before) + len(subject))


def _table(source: Source, columns: Mapping[str, Sequence[str]]) -> Table:
    if is_table_file(source.path) or Path(source.path).exists():
        try:
            return read_source(source.path, source.encoding, source.quoting, source.choice)
        except TableError as error:
            raise ConfigError(f"task.source: {error}") from None
    try:
        check_rows(source.path, source.choice)
    except TableError as error:
        raise ConfigError(f"task.source: {error}") from None
    import datasets  # half a second, which a task of another kind need not wait for

    try:
        data = datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error  # the builders wrap what went wrong in a message that says nothing
        said = next(iter(str(cause).splitlines()), "no reason given")
        raise ConfigError(f"task.source: cannot read {source.path} ({type(cause).__name__}: {said}).") from None
    if len(data) == 0:
        raise ConfigError(f"task.source: {source.path} has no rows.")
    asked = {column for named in columns.values() for column in named}
    known = [column for column in data.column_names if column in asked | {name.split(".")[0] for name in asked}]
    inside = [column for column in asked if column not in known and column.split(".")[0] in known]
    if not asked <= {*known, *inside}:
        return Table(source.path, (*data.column_names, *inside), [], [], "dataset on the hub")  # for the message
    # Other columns may hold what no text stands for, such as images.
    return from_arrow(data.select_columns(known).with_format("arrow")[:], source.path, "dataset on the hub")


KEYS = {"boundary": "word_boundary", "ignore_case": "ignore_case"}  # argument of `find_word` -> key of the task


class Rules(Protocol):
    """The settings of a task that say how a subject is found in its prompt."""

    @property
    def occurrence(self) -> str: ...

    @property
    def word_boundary(self) -> str: ...

    @property
    def ignore_case(self) -> bool: ...


class Subjects:
    """Finds the subjects of a source's rows, and notes how they were found.

    Arguments:
        config: the task, whose `occurrence`, `word_boundary` and `ignore_case` are the rules.
        rows: the source; its findings take the notes.
    """

    def __init__(self, config: Rules, rows: Rows) -> None:
        self._config, self._rows = config, rows

    def marked(
        self, where: str, values: Mapping[str, Cell], column: str, subject: str, what: str
    ) -> tuple[str, tuple[int, int]] | None:
        """Fill in a subject, or find it.

        Arguments:
            where: the row, for messages.
            values: the row.
            column: of the prompt, which holds the subject or `{}` in its place.
            subject: the subject.
            what: the prompt in messages (`source prompt`).

        Returns:
            The text, and the subject's characters in it; None: it does not occur, the row is dropped.
        """
        start = self._rows.start(values, column, subject) if self._config.occurrence == "auto" else None
        if start is not None:
            return values[column], (start, start + len(subject))
        text, place = filled(values[column], subject)
        if place is None:
            asked = self._rows.asked(values, column)
            found = self._found(where, text[asked:], subject, what)
            place = None if found is None else (asked + found[0], asked + found[1])
        return None if place is None else (text, place)

    def _found(self, where: str, text: str, subject: str, what: str) -> tuple[int, int] | None:
        config, rows = self._config, self._rows
        found = find_word(text, subject, boundary=config.word_boundary, ignore_case=config.ignore_case)
        shown = f"{subject} in {text}"
        if not found:
            other = other_form(text, subject, boundary=config.word_boundary, ignore_case=config.ignore_case)
            if other is None:
                rows.drop(where, f"whose {what} does not hold the subject", f"{subject!r} in {text!r}")
            else:
                written, rules = other
                keys = " and ".join(f"task.{KEYS[name]}={value}".lower() for name, value in rules.items())
                rows.drop(where, f"whose {what} holds the subject in another form ({keys} reads it)",
                                f"{subject!r} as {written!r}")  # fmt: skip
            return None
        first = config.occurrence == "first"
        one = found[0 if first else -1]
        if len(found) > 1:
            read = "first" if first else "last"
            rows.find(
                f"{what}s that hold their subject several times, the {read} is read (task.occurrence)", where, shown
            )
        if not (one.begins and one.ends):
            rows.find(f"subjects that are a part of a longer word in their {what} (task.word_boundary)", where, shown)
        if text[one.start : one.stop] != subject.strip():
            rows.find(f"subjects that their {what} spells otherwise (accents, width, case)", where, shown)
        return one.start, one.stop


def check_columns(source: Source, asked: list[tuple[str, str]]) -> None:
    """Check that a file can be read, and has the columns that settings name.

    Arguments:
        source: the file, localized.
        asked: (setting, the column that it names).

    Raises:
        ConfigError: it cannot be read, or lacks a column.
    """
    path = located(source.path)
    if not is_table_file(path) and not path.is_dir():
        raise ConfigError(f"task.source: expected a file that ends in {', '.join(SUFFIXES)}, got {source.path!r}.")
    if not path.exists():
        raise ConfigError(f"task.source: expected a file with prompts at {path}, found none. Check the path.")
    try:
        table = read_source(path, source.encoding, source.quoting, source.choice)
    except TableError as error:
        raise ConfigError(f"task.source: {error}") from None
    for where, name in asked:
        if name not in table.columns:
            raise ConfigError(f"{where}: {path} has no column {name!r}.{table.hint(name)}{formats_hint(table)}")
        try:
            table.index(name)
        except TableError as error:
            raise ConfigError(f"{where}: {error}") from None

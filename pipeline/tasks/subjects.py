"""Where a row's subject stands in its prompt: the same rules for every task that marks one."""

from __future__ import annotations

from collections.abc import Mapping

from interp.prompts import find_word, other_form
from pipeline.config.task import AttributeExtractionConfig, NextTokenConfig
from pipeline.tables.table import Cell
from pipeline.tasks.tables import Rows, filled

__all__ = ["Subjects"]

KEYS = {"boundary": "word_boundary", "ignore_case": "ignore_case"}  # argument of `find_word` -> key of the task


class Subjects:
    """Finds the subjects of a source's rows, and notes how they were found.

    Arguments:
        config: the task, whose `occurrence`, `word_boundary` and `ignore_case` are the rules.
        rows: the source; its findings take the notes.
    """

    def __init__(self, config: NextTokenConfig | AttributeExtractionConfig, rows: Rows) -> None:
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

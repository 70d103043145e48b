"""Sentences with a masked word, one an object: the file of the task `cloze`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.tables.decoding import decoded
from pipeline.tables.json_rows import json_objects
from pipeline.tables.table import TableError

__all__ = ["BLANK", "Sentence", "read_sentences"]

BLANK = "___"
COLUMNS = {"concept", "language", "text", "words"}


@dataclass(frozen=True, slots=True)
class Sentence:
    """One row of a file of sentences.

    Arguments:
        concept: what the masked word means.
        language: code of the language.
        text: the sentence, with one `___` where the word is masked.
        words: the accepted words, best first.
    """

    concept: str
    language: str
    text: str
    words: tuple[str, ...]


def read_sentences(path: str | Path, encoding: str = "auto") -> list[Sentence]:
    """Read a file of sentences.

    Arguments:
        path: the file; JSON lines or a JSON list, one object a sentence with `concept`, `language`, `text`, `words`.
        encoding: of its text; `auto`: as the byte-order mark says, else UTF-8.

    Raises:
        TableError: the file or a sentence of it is not such; the message names the line.
    """
    text, _ = decoded(path, encoding)
    objects, lines, _ = json_objects(text, str(path))
    found: dict[tuple[str, str], Sentence] = {}
    for values, line in zip(objects, lines, strict=True):
        where = f"{path}, line {line}"
        sentence = _sentence(values, where)
        key = (sentence.concept, sentence.language)
        if key in found:
            raise TableError(f"{where}: a second sentence for {key[0]!r} in {key[1]!r}. Keep one.")
        found[key] = sentence
    if not found:
        raise TableError(f"{path} holds no sentence.")
    return list(found.values())


def _sentence(values: dict[str, Any], where: str) -> Sentence:
    missing = sorted(COLUMNS - set(values))
    if missing:
        raise TableError(f"{where}: expected the key {missing[0]!r}, got {sorted(values)}.")
    if set(values) != COLUMNS:
        raise TableError(f"{where}: expected an object with exactly {sorted(COLUMNS)}, got {sorted(values)}.")
    words = values["words"]
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise TableError(f"{where}: expected 'words' to be a list of at least one word, got {words!r}.")
    for column in sorted(COLUMNS - {"words"}):
        if not isinstance(values[column], str) or not values[column].strip():
            raise TableError(f"{where}: expected {column!r} to be a text, got {values[column]!r}.")
    if "\0" in values["text"] or any("\0" in word for word in words):
        raise TableError(f"{where}: expected text, got a NUL in {values!r}. Mend the line.")
    if values["text"].count(BLANK) != 1:
        raise TableError(f"{where}: expected one {BLANK!r} in 'text', got {values['text']!r}.")
    return Sentence(
        str(values["concept"]), str(values["language"]), str(values["text"]), tuple(str(word) for word in words)
    )

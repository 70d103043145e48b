"""What is odd about a user's rows: counted by kind, shown by a few examples, in the log and in the report."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from interp.prompts import encode
from pipeline.tables.notes import Note
from pipeline.tasks.records import Row, TaskData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Findings", "odd_prompts", "shortened"]

SHOWN = 60  # characters of a text in an example
EXAMPLES = 3

# Signs that nobody sees. The joiners U+200C and U+200D are letters of Persian, Hindi and emoji, so between other signs
# than ASCII they are no oddity; neither are the tags of flags.
INVISIBLE = re.compile(
    "[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
    "|(?:^|(?<=[\x00-\x7f]))[\u200c\u200d]|[\u200c\u200d](?=[\x00-\x7f]|$)"
)
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")  # but tab, line feed, return and next line


class Findings:
    """Counts of what was found, in the order in which it was found first."""

    def __init__(self) -> None:
        self._examples: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, what: str, example: str) -> None:
        """Count one more.

        Arguments:
            what: as it follows its count in a sentence (`rows without a prompt left out`).
            example: this one, with its place.
        """
        self._counts[what] += 1
        shown = self._examples.setdefault(what, [])
        if len(shown) < EXAMPLES:
            shown.append(example)

    def notes(self) -> tuple[Note, ...]:
        """All that was found."""
        return tuple(Note(what, self._counts[what], tuple(shown)) for what, shown in self._examples.items())


def shortened(text: str) -> str:
    """A text as an example shows it: what is invisible is spelled out (`\\u200b`), what is long is cut."""
    cut = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return INVISIBLE.sub(lambda sign: ascii(sign[0])[1:-1], repr(cut))


def odd_prompts(data: TaskData, tokenizer: PreTrainedTokenizerBase) -> tuple[Note, ...]:
    """What is odd about prompts, target prompts and answers, though a model reads them.

    Arguments:
        data: what a task made.
        tokenizer: the model's.

    Returns:
        Counts with examples: special tokens inside a prompt, signs that nobody sees, a space at the end (the tokenizer
        would have joined it to the next word), blanks that were not filled, prompts that stand there several times.
    """
    findings = Findings()
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    bare = Counter(tokenizer.encode("a", add_special_tokens=False))
    usual = Counter(encode(tokenizer, "a").input_ids) - bare  # what begins or ends every prompt
    for name, rows in (("prompts", data.prompts), ("target prompts", data.targets)):
        for number, row in enumerate(rows):
            where = f"{name.removesuffix('s')} {number} {shortened(row.prompt)}"
            held = Counter(token for token in row.input_ids if token in special) - usual
            if tokenizer.unk_token_id in held and tokenizer.unk_token not in row.prompt:
                del held[tokenizer.unk_token_id]  # it stands for a sign that the tokenizer does not know
            if held:
                named = ", ".join(tokenizer.decode([token]) for token in sorted(held))
                findings.add(f"{name} whose text holds special tokens ({named})", where)
            _odd_text(findings, name, row.prompt, where)
            if row.prompt[-1:].isspace() and row.prompt[-1] not in "\r\n":
                findings.add(f"{name} that end in a space, so that the next token begins without one", where)
            if "{}" in row.prompt:
                findings.add(f"{name} that hold {{}}, with no subject to fill it", where)
    _odd_answers(findings, data.prompts, [tokenizer.decode([token]) for token in sorted(special)])
    _repeated(findings, data.prompts)
    return findings.notes()


def _odd_text(findings: Findings, name: str, text: str, where: str) -> None:
    if text.isascii() and text.isprintable():
        return
    if len(unicodedata.normalize("NFC", text)) < len(text):
        findings.add(
            f"{name} whose accents are signs of their own (decomposed), which a tokenizer reads as others", where
        )
    if INVISIBLE.search(text):
        findings.add(f"{name} that hold invisible characters", where)
    if CONTROL.search(text):
        findings.add(f"{name} that hold control characters", where)


def _odd_answers(findings: Findings, rows: Sequence[Row], special: Sequence[str]) -> None:
    words = dict.fromkeys(word for row in rows for accepted in row.words.values() for word in accepted)
    for word in words:
        _odd_text(findings, "answers", word, shortened(word))
        if held := [token for token in special if token in word]:
            findings.add(f"answers whose text holds special tokens ({', '.join(held)})", shortened(word))
        if word != word.strip():
            findings.add("answers with spaces around them", shortened(word))


def _repeated(findings: Findings, rows: Iterable[Row]) -> None:
    times = Counter(row.prompt for row in rows)
    for prompt, count in times.most_common():
        for _ in range(count - 1):
            findings.add("prompts that repeat an earlier one", f"{count} times {shortened(prompt)}")

"""The task: name the opposite of a word, after some that are solved: `hot - cold`, `big - small`, `good -`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from interp.prompts import POLICIES
from pipeline.artifacts.tokens import TaskData
from pipeline.config.paths import located
from pipeline.config.section import MISSING, ConfigError, bounded, chosen
from pipeline.config.task import TaskConfig
from pipeline.tasks.build import Answers, make_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BETWEEN = " - "


@dataclass(frozen=True)
class OppositesConfig(TaskConfig):
    """Name the opposite of a word.

    Arguments:
        kind: `opposites`.
        source: path of a text file, a word and its opposite a line.
        shots: solved pairs before the question, the next ones of the file.
        target_policy: which tokens count as an answer, see `interp.prompts.answer_tokens`.
        depends_on: the file that the stage depends on, the pairs.
    """

    file_key: ClassVar[str] = "source"  # a path in it is found from where the user stands, and in every run folder

    kind: str = "opposites"
    source: str = MISSING
    shots: int = bounded(2, 0, 100)
    target_policy: str = chosen("first_token", *POLICIES)
    depends_on: str = MISSING

    def describe(self) -> str:
        """What the report says of its prompts."""
        return f"the opposites of the words in {self.source}"

    def check(self) -> None:
        """Check the settings against the file, before anything runs."""
        if self.shots >= (number := len(self.read())):
            raise ConfigError(f"task.shots: expected less than the {number} pairs of {self.source}, got {self.shots}.")

    def read(self) -> list[tuple[str, str]]:
        """The pairs of the file."""
        path = Path(located(self.source))
        if not path.is_file():
            raise ConfigError(f"task.source: expected a file with two words a line at {path}, found none.")
        pairs = [tuple(line.split()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if bad := [pair for pair in pairs if len(pair) != 2]:
            raise ConfigError(f"task.source: expected two words a line in {path}, got {' '.join(bad[0])!r}.")
        return [(word, opposite) for word, opposite in pairs]

    def make(self, tokenizer: PreTrainedTokenizerBase, context_length: int | None) -> TaskData:
        """One prompt a pair; the groups are the opposite and the word itself, for a model that only repeats."""
        pairs, answers = self.read(), Answers(tokenizer, self.target_policy)
        rows = []
        for number, (word, opposite) in enumerate(pairs):
            solved = [pairs[(number + 1 + shot) % len(pairs)] for shot in range(self.shots)]
            text = "".join(f"{first}{BETWEEN}{second}\n" for first, second in solved)
            rows.append(
                make_row(
                    tokenizer,
                    context_length,
                    where=f"pair {number + 1}",
                    prompt=f"{text}{word}{BETWEEN.rstrip()}",
                    spans={"query": (len(text), len(text) + len(word))},
                    labels={"word": word},
                    answers={"opposite": answers([opposite]), "word": answers([word])},
                )
            )
        return TaskData(rows, counts={"pairs": len(pairs)}, groups={"opposite": "its opposite", "word": "the word"})

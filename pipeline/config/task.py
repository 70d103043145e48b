"""Section `task`: the base of all kinds of tasks; each is a subclass, in the module that makes its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pipeline.config.section import Kinds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.artifacts.tokens import TaskData

__all__ = ["TaskConfig"]


@dataclass(frozen=True)
class TaskConfig(Kinds):
    """A task: its settings, the rules that they keep, and how its prompts are made.

    A subclass is a frozen dataclass whose `kind` has its name as default; importing its module makes it known.

    Attributes:
        file_key: the setting that names its input file.
        on_hub: whether that may be a data set of the hub.
        sees: whether its prompts have images; `make` is then given what encodes them as well.
        kind: the task.
    """

    section: ClassVar[str] = "task"
    noun: ClassVar[str] = "task"
    file_key: ClassVar[str]
    on_hub: ClassVar[bool] = False
    sees: ClassVar[bool] = False

    kind: str

    def spans(self) -> tuple[str, ...]:
        """The spans that it marks in its prompts."""
        return ("query",)

    def lacks_targets(self) -> str:
        """Why it makes no prompts to patch into, as it follows `there is`; empty where it makes some."""
        return f"task {self.kind}, which has none"

    def averaged(self) -> Sequence[str] | None:
        """The languages whose source prompts a pair has, which a patchscope can average over; None: it has no such."""
        return None

    def files(self) -> Mapping[str, Path]:
        """Further files that its input file names (its images), on whose bytes its prompts depend: name -> file.

        Raises:
            InterpError: one is missing.
        """
        return {}

    def check(self) -> None:
        """Check its settings against each other and against its input file, as the stage `tokenize` will read it.

        Raises:
            ConfigError: it cannot be made.
        """
        raise NotImplementedError(f"task {self.kind}: its class has no method `check`")

    def make(self, tokenizer: PreTrainedTokenizerBase, context_length: int | None) -> TaskData:
        """Make its prompts, targets and pairs.

        Arguments:
            tokenizer: the model's.
            context_length: how many tokens the model reads at most; None: no limit is known.

        Raises:
            InterpError: whatever keeps it from being made.
        """
        raise NotImplementedError(f"task {self.kind}: its class has no method `make`")

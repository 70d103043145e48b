"""Prompts that something is written into: a text and the token that is replaced, one or a batch of them.

batch = TargetPromptBatch([TargetPrompt("king king\n?"), TargetPrompt(translation, "query.last")])  # a Prompt has spans
resolved = batch.resolve(tokenizer)
inputs = left_padded(resolved.input_ids, pad_id, device)     # interp.batching
hidden[range(len(batch)), resolved.columns] = latents        # hidden: (prompt, length, hidden_size)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.errors import InterpError
from interp.positions import Position
from interp.prompts.given import listed
from interp.prompts.prompt import Prompt

if TYPE_CHECKING:  # transformers imports torch, which this module does without
    from transformers import PreTrainedTokenizerBase

__all__ = ["ResolvedTargets", "TargetPrompt", "TargetPromptBatch"]


@dataclass(frozen=True, slots=True)
class ResolvedTargets:
    """Target prompts as a model is fed them.

    Arguments:
        input_ids: token ids of each prompt, unpadded.
        positions: the token of each prompt that is replaced, counted from 0 without padding.
    """

    input_ids: list[list[int]]
    positions: list[int]

    @property
    def columns(self) -> list[int]:
        """The positions in a batch that `interp.batching.left_padded` made of these prompts."""
        longest = max(len(ids) for ids in self.input_ids)
        return [longest - len(ids) + at for ids, at in zip(self.input_ids, self.positions, strict=True)]


@dataclass(frozen=True, slots=True, init=False)
class TargetPrompt:
    """A prompt, and the token of it that is replaced.

    Arguments:
        prompt: a text, or a `Prompt`, whose spans a position may name.
        position: any spelling of `interp.positions` that names one token.

    Raises:
        InterpError: neither a text nor a `Prompt`, or a position that cannot be read.
    """

    prompt: Prompt
    position: Position

    def __init__(self, prompt: Prompt | str, position: str | int | Position = "last") -> None:
        if not isinstance(prompt, str | Prompt):
            raise InterpError(f"target prompt: expected a text or a Prompt, got {prompt!r:.80}.")
        object.__setattr__(self, "prompt", Prompt(prompt) if isinstance(prompt, str) else prompt)
        parsed = position if isinstance(position, Position) else Position.parse(position)
        object.__setattr__(self, "position", parsed)

    def resolve(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
        """The token ids, and the index among them of the token that is replaced.

        Arguments:
            tokenizer: the model's.

        Raises:
            InterpError: the prompt cannot be tokenized, or the position is not one token of it.
        """
        encoded = self.prompt.encode(tokenizer)
        found = self.position.resolve(len(encoded.input_ids), encoded.spans)
        if len(found) != 1:
            raise InterpError(
                f"position {self.position.text!r}: expected one token to replace, got {len(found)} (tokens {found[0]} "
                f"to {found[-1]}). Say which: last, 0, query.last, ..."
            )
        return encoded.input_ids, found[0]


class TargetPromptBatch:
    """Target prompts of one batch, each with its own position.

    Arguments:
        prompts: the target prompts.

    Raises:
        InterpError: there is none.
    """

    def __init__(self, prompts: Iterable[TargetPrompt]) -> None:
        self.prompts = tuple(prompts)
        if not self.prompts:
            raise InterpError("expected at least one target prompt, got none.")

    @classmethod
    def of(
        cls, prompts: Sequence[Prompt | str], positions: str | int | Sequence[str | int] = "last"
    ) -> TargetPromptBatch:
        """Prompts with a position each, or one position for all.

        Arguments:
            prompts: texts or `Prompt`s.
            positions: one spelling of `interp.positions`, or as many as prompts.

        Raises:
            InterpError: there is no prompt, there are other numbers of positions, or one cannot be read.
        """
        if isinstance(prompts, str):
            raise InterpError(
                f"expected several prompts, got one text, {prompts!r}. Put it in a list, or use `repeated`."
            )
        prompts = listed(prompts)
        each = [positions] * len(prompts) if isinstance(positions, str | int) else list(positions)
        if len(each) != len(prompts):
            raise InterpError(f"expected one position, or one for each of {len(prompts)} prompts, got {len(each)}.")
        return cls(TargetPrompt(prompt, position) for prompt, position in zip(prompts, each, strict=True))

    @classmethod
    def repeated(cls, prompt: TargetPrompt, size: int) -> TargetPromptBatch:
        """The same target prompt `size` times."""
        return cls([prompt] * size)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[TargetPrompt]:
        return iter(self.prompts)

    def __getitem__(self, index: int) -> TargetPrompt:
        return self.prompts[index]

    def resolve(self, tokenizer: PreTrainedTokenizerBase) -> ResolvedTargets:
        """Tokenize every prompt and find its position; the same prompt is tokenized once.

        Arguments:
            tokenizer: the model's.

        Raises:
            InterpError: a prompt cannot be tokenized, or its position is not one token of it; the message numbers it.
        """
        known: dict[int, tuple[list[int], int]] = {}
        for number, prompt in enumerate(self.prompts):
            if id(prompt) not in known:
                try:
                    known[id(prompt)] = prompt.resolve(tokenizer)
                except InterpError as error:
                    raise InterpError(f"target prompt {number}: {error}") from None
        resolved = [known[id(prompt)] for prompt in self.prompts]
        return ResolvedTargets([ids for ids, _ in resolved], [at for _, at in resolved])

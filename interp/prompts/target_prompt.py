"""Target prompts: a text and the token that a patch replaces, one or a batch of them.

batch = TargetPromptBatch([TargetPrompt("king king\n?"), TargetPrompt(translation, "query.last")])  # a Prompt has spans
resolved = batch.resolve(tokenizer)
inputs = left_padded(resolved.input_ids, pad_id, device)     # interp.batching
hidden[range(len(batch)), resolved.columns] = latents        # hidden: (prompt, length, hidden_size)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from interp.errors import InterpError, nearest
from interp.positions import Position
from interp.prompts.chat import repeat_chat_prompt
from interp.prompts.given import listed
from interp.prompts.patchscopes import ATTRIBUTES, IDENTITY_PROMPTS, attribute_prompt, entity_description_prompt
from interp.prompts.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TARGET_NAMES", "ResolvedTargets", "TargetPrompt", "TargetPromptBatch", "as_target_prompt"]


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


# What is written over where nobody says: the span that a prompt was made with, or else its last token.
_PLACEHOLDERS = ("placeholder", "subject")

TARGET_NAMES: tuple[str, ...] = (*IDENTITY_PROMPTS, "description", "chat", *ATTRIBUTES)
"""Names that `as_target_prompt` knows: identity prompts, descriptions of entities, the repeat prompt as a chat, and the
relations of `ATTRIBUTES`."""


def as_target_prompt(
    given: str | Prompt | TargetPrompt, tokenizer: PreTrainedTokenizerBase, position: str | int | None = None
) -> TargetPrompt:
    """A target prompt from any way of writing one.

    Arguments:
        given: one of `TARGET_NAMES`; a text; a `Prompt`; or a `TargetPrompt`, which says itself what is written over.
        tokenizer: the model's, whose chat template `chat` uses.
        position: what is written over, in the vocabulary of `interp.positions`; None: the prompt's placeholder (its
            span `placeholder` or `subject`), or its last token where it has none.

    Returns:
        The target prompt; `resolve` gives its token ids and the token that is written over.

    Raises:
        InterpError: an empty text, one word that is nearly one of the names, a position that cannot be read, a chat
            without a chat template, or a position beside a `TargetPrompt`.
    """
    if isinstance(given, TargetPrompt):
        if position is not None:
            raise InterpError(
                f"position: got {position!r}, but the target prompt says itself that {given.position.text!r} is "
                "written over."
            )
        return given
    if not isinstance(given, str | Prompt):
        raise InterpError(f"expected a target prompt, a text, a Prompt or a TargetPrompt, got {given!r:.80}.")
    prompt = _of_text(given, tokenizer) if isinstance(given, str) else given
    if position is None:
        span = next((name for name in _PLACEHOLDERS if name in prompt.spans), None)
        position = "last" if span is None else f"{span}.last"
    return TargetPrompt(prompt, position)


def _of_text(name_or_text: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    if name_or_text in IDENTITY_PROMPTS:
        return Prompt(IDENTITY_PROMPTS[name_or_text])
    if name_or_text in ATTRIBUTES:
        return attribute_prompt(name_or_text)
    if name_or_text == "description":
        return entity_description_prompt()
    if name_or_text == "chat":
        return repeat_chat_prompt(tokenizer)
    if not name_or_text.strip():
        raise InterpError(f"expected a target prompt, got {name_or_text!r}.{nearest('', TARGET_NAMES)}")
    if len(name_or_text.split()) == 1 and get_close_matches(name_or_text, TARGET_NAMES, cutoff=0.8):
        raise InterpError(f"no target prompt is called {name_or_text!r}.{nearest(name_or_text, TARGET_NAMES)}")
    return Prompt(name_or_text)

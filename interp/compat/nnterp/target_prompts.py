"""Target prompts of a patchscope: a text, and which of its tokens is written over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp import prompts
from interp.errors import InterpError
from interp.prompts.chat import INSTRUCTION, Message, repeat_chat_prompt
from interp.prompts.given import listed
from interp.prompts.patchscopes import REPEATED_WORDS

__all__ = ["TargetPrompt", "TargetPromptBatch", "it_repeat_prompt", "repeat_prompt"]

_TASK = "Your task is to guess the next word in the sentence. You must answer with the next word only."
_REQUEST = "Guess the next word in the following sentence (answer only the next word): "


@dataclass
class TargetPrompt:
    """A target prompt.

    Arguments:
        prompt: its text.
        index_to_patch: the token that is written over, counted in this prompt's own tokens; from the end where
            negative.
    """

    prompt: str
    index_to_patch: int


@dataclass
class TargetPromptBatch:
    """Target prompts, each with its own token to write over.

    Arguments:
        prompts: their texts.
        index_to_patch: (prompt,), as in `TargetPrompt`.
    """

    prompts: list[str]
    index_to_patch: Tensor

    @classmethod
    def from_target_prompts(cls, prompts_: Sequence[TargetPrompt]) -> TargetPromptBatch:
        """A batch of given target prompts."""
        for given in prompts_:
            if not isinstance(given, TargetPrompt):
                raise InterpError(f"target prompts: expected texts or TargetPrompts, got {given!r:.80} among them.")
        return cls([p.prompt for p in prompts_], torch.tensor([int(p.index_to_patch) for p in prompts_], device="cpu"))

    @classmethod
    def from_target_prompt(cls, prompt: TargetPrompt, batch_size: int) -> TargetPromptBatch:
        """The same target prompt `batch_size` times."""
        return cls.from_target_prompts([prompt] * batch_size)

    @classmethod
    def from_prompts(
        cls, prompts: str | Sequence[str], index_to_patch: int | Sequence[int] | Tensor
    ) -> TargetPromptBatch:
        """A batch from texts and one index for all, or one each."""
        texts = listed(prompts)
        if not all(isinstance(text, str) for text in texts):
            raise InterpError(f"prompts: expected texts, got {prompts!r:.80}.")
        if isinstance(index_to_patch, int):
            indices = torch.tensor([index_to_patch] * len(texts), device="cpu")
        elif isinstance(index_to_patch, Tensor):
            indices = index_to_patch
        elif isinstance(index_to_patch, list | tuple):
            indices = torch.tensor(index_to_patch, device="cpu")
        else:
            raise InterpError(f"index_to_patch: expected an int, ints or a tensor, got {type(index_to_patch).__name__}")
        if len(indices) != len(texts):
            raise InterpError(f"index_to_patch: expected one for each of {len(texts)} prompts, got {len(indices)}.")
        return cls(texts, indices)

    @staticmethod
    def auto(
        target_prompt: str | TargetPrompt | Sequence[TargetPrompt | str] | TargetPromptBatch, batch_size: int
    ) -> TargetPromptBatch:
        """A batch of `batch_size` from any way of writing one; a text alone is written over at its last token.

        Raises:
            InterpError: not target prompts, or another number of them.
        """
        if isinstance(target_prompt, str):
            target_prompt = TargetPrompt(target_prompt, -1)
        if isinstance(target_prompt, TargetPrompt):
            return TargetPromptBatch.from_target_prompt(target_prompt, batch_size)
        if isinstance(target_prompt, list | tuple):
            each = [TargetPrompt(p, -1) if isinstance(p, str) else p for p in target_prompt]
            target_prompt = TargetPromptBatch.from_target_prompts(each)
        if not isinstance(target_prompt, TargetPromptBatch):
            raise InterpError(
                "target prompts: expected a text, a TargetPrompt, a list of them or a TargetPromptBatch, got "
                f"{type(target_prompt).__name__}."
            )
        if len(target_prompt) != batch_size:
            raise InterpError(
                f"expected one target prompt for each of {batch_size} sources, got {len(target_prompt)}. Give one "
                "TargetPrompt to use it for all."
            )
        return target_prompt

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, idx: int) -> TargetPrompt:
        return TargetPrompt(self.prompts[idx], self.index_to_patch[idx])  # type: ignore[arg-type]  # as in nnterp

    def __iter__(self) -> Iterator[TargetPrompt]:
        return (self[i] for i in range(len(self)))


def repeat_prompt(
    words: Sequence[str] | None = None,
    rel: str = " ",
    sep: str = "\n",
    placeholder: str = "?",
    index_to_patch: int = -1,
) -> TargetPrompt:
    """A prompt that repeats words, so that a model repeats what is written over its last token.

    Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102; see `interp.prompts.repeat_prompt`.

    Arguments:
        words: what is repeated; None: king, 1135, hello.
        rel: between a word and its repetition.
        sep: between pairs.
        placeholder: the text at the end.
        index_to_patch: the token that is written over.
    """
    repeated = prompts.repeat_prompt(REPEATED_WORDS if words is None else words, rel, sep, placeholder)
    return TargetPrompt(repeated.text, index_to_patch)


def it_repeat_prompt(
    tokenizer: Any,
    words: Sequence[str] | None = None,
    rel: str = " ",
    sep: str = "\n",
    placeholder: str = "?",
    complete_prompt: bool = True,
    add_user_instr: bool = True,
    use_system_prompt: bool = True,
) -> TargetPrompt:
    """`repeat_prompt` as a chat, for models that are tuned to follow instructions.

    A start token that the chat template writes is left out where the tokenizer adds it itself, so that a trace feeds
    it once.

    Arguments:
        tokenizer: a tokenizer with a chat template.
        words, rel, sep, placeholder: as in `repeat_prompt`.
        complete_prompt: the answer begins with the repeat prompt; else it is left to the model.
        add_user_instr: the user says what the task is, and the assistant agrees, before the prompt.
        use_system_prompt: the chat begins with a system turn.
    """
    system: Message = {"role": "system", "content": f"The user will provide you with a sentence. {_TASK}"}
    if add_user_instr:
        before = INSTRUCTION if use_system_prompt else INSTRUCTION[1:]
    else:
        before = (system,) if use_system_prompt else ()
    text = repeat_chat_prompt(
        tokenizer,
        REPEATED_WORDS if words is None else words,
        rel,
        sep,
        placeholder,
        before=before,
        introduction="" if before else _REQUEST,
        complete=complete_prompt,
    ).text
    start, start_id = tokenizer.bos_token, tokenizer.bos_token_id
    if start and text.startswith(start) and tokenizer(text).input_ids[:2] == [start_id, start_id]:
        text = text.removeprefix(start)
    return TargetPrompt(text, -1)

"""The repeat prompt for models that were trained on chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from interp.prompts.chat import Message, chat_prompt
from interp.prompts.prompt import Prompt
from interp.prompts.repeat import REPEATED_WORDS, repeat_prompt

if TYPE_CHECKING:  # transformers imports torch, which this module does without
    from transformers import PreTrainedTokenizerBase

__all__ = ["INSTRUCTION", "repeat_chat_prompt"]

# What the chat begins with; leave the first out for a template without system role.
INSTRUCTION: tuple[Message, ...] = (
    {"role": "system", "content": "You are a helpful assistant."},
    {
        "role": "user",
        "content": "I will provide you with a series of sentences. Your task is to guess the next word in the "
        "sentence. You must answer with the next word only.",
    },
    {"role": "assistant", "content": "Ok."},
)


def repeat_chat_prompt(
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[str] = REPEATED_WORDS,
    relation: str = " ",
    separator: str = "\n",
    placeholder: str = "?",
    *,
    before: Sequence[Message] = INSTRUCTION,
    introduction: str = "",
    complete: bool = True,
) -> Prompt:
    """A `repeat_prompt` as a chat: instructions, the prompt as the user's message, and the prompt again as its answer.

    Arguments:
        tokenizer: one that has a chat template.
        words, relation, separator, placeholder: as in `repeat_prompt`.
        before: the messages before the prompt.
        introduction: what the user's message says before the prompt.
        complete: the answer repeats the prompt up to its placeholder, so that the model goes on from there; otherwise
            the chat ends with the header of an answer.

    Returns:
        The prompt with the spans of `chat_prompt` and `placeholder`, the last one: in the answer, or else in the user's
        message.

    Raises:
        InterpError: as `repeat_prompt` and `chat_prompt` do.
    """
    repeated = repeat_prompt(words, relation, separator, placeholder).text
    messages = [*before, {"role": "user", "content": introduction + repeated}]
    if complete:
        messages.append({"role": "assistant", "content": repeated})
    prompt = chat_prompt(tokenizer, messages, continue_final=complete)
    repeating = prompt.spans.get(f"message_{len(messages) - 1}")
    if repeating is None:  # the template changed the text
        return prompt
    start, stop = repeating
    stop = start + len(prompt.text[start:stop].rstrip())
    return replace(prompt, spans={**prompt.spans, "placeholder": (stop - len(placeholder.strip()), stop)})

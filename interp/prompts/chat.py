"""Turns chats into prompts: the chat template applied once, with one start token.

prompt = chat_prompt(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
prompt.encode(tokenizer).input_ids      # what transformers itself would feed; `message_0` marks the question
chat_prompt(processor, [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", ...}]}])
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from interp.errors import InterpError
from interp.prompts.patchscopes import REPEATED_WORDS, repeat_prompt
from interp.prompts.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

__all__ = ["INSTRUCTION", "Message", "chat_prompt", "repeat_chat_prompt"]


Message = Mapping[str, Any]  # of `role` and `content`

# Stands for a message's text in a second rendering: private-use characters, which no template has or changes.
MARK = "\ue000{}\ue001"
MARKED = re.compile("\ue000([0-9]+)\ue001")


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    messages: Sequence[Message],
    *,
    continue_final: bool = False,
    add_generation_prompt: bool | None = None,
    add_special_tokens: bool | None = None,
) -> Prompt:
    """A chat written out by the tokenizer's chat template.

    A template writes every special token that the chat needs, so the tokenizer adds none when the prompt is encoded:
    the ids are those of `tokenizer.apply_chat_template(messages, tokenize=True)`. To feed the text to a tokenizer
    yourself would double the start token in most models.

    Arguments:
        tokenizer: one that has a chat template; for messages with images the model's processor.
        messages: dictionaries of `role` and `content`: a text, or a list of parts, `{"type": "text", "text": ...}` and
            `{"type": "image", "image": ...}` (a PIL image, a path or an array; without one the prompt gets its images
            elsewhere).
        continue_final: leave the last message open, so that the model goes on with it.
        add_generation_prompt: end with the header of an answer; None: unless `continue_final`.
        add_special_tokens: let the tokenizer add its start token, for a template that leaves that to it. Encoding is
            refused where the template wrote one too. None: as transformers does: a tokenizer adds none, a processor
            does where the text does not begin with it.

    Returns:
        The prompt, with its images. Spans `message_0`, `message_1`, ... mark the messages' texts. There are none where
        the template does more to a text than to strip spaces around it, none for an empty text, and none without a
        fast tokenizer.

    Raises:
        InterpError: there is no chat template, it refuses the messages (many have no system role), a message is not
            such a dictionary, or both `continue_final` and `add_generation_prompt` are asked for.
    """
    parts, images = _parts(messages)
    if continue_final and add_generation_prompt:
        raise InterpError(
            "continue_final leaves the last message open, add_generation_prompt begins a new one: ask for one of them."
        )
    options = {
        "continue_final_message": continue_final,
        "add_generation_prompt": not continue_final if add_generation_prompt is None else add_generation_prompt,
    }
    text = _rendered(tokenizer, messages, options)
    # Without offsets (a slow tokenizer) no tokens could be found for them.
    inner: Any = getattr(tokenizer, "tokenizer", None)
    spans = _spans(tokenizer, messages, parts, text, options) if (inner or tokenizer).is_fast else {}
    if add_special_tokens is None:
        start = None if inner is None else inner.bos_token
        add_special_tokens = start is not None and not text.startswith(start)
    return Prompt(text, spans=spans, add_special_tokens=add_special_tokens, images=images)


def _parts(messages: Sequence[Message]) -> tuple[list[tuple[int, str]], tuple[Any, ...]]:
    """The texts of the messages, each with the number of its message, and their images."""
    if isinstance(messages, str | Mapping) or not messages:
        raise InterpError(f"expected a list of messages, [{{'role': 'user', 'content': '...'}}], got {messages!r}.")
    texts: list[tuple[int, str]] = []
    images: list[Any] = []
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) and set(message) == {"role", "content"} else 0
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple) or not isinstance(message["role"], str):
            raise InterpError(f"message {number}: expected {{'role': a text, 'content': a text}}, got {message!r}.")
        for part in parts:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind == "text" and isinstance(part.get("text"), str):
                texts.append((number, part["text"]))
            elif kind == "image":
                images += [part[key] for key in ("image", "path", "url") if part.get(key) is not None]
            else:
                raise InterpError(
                    f"message {number}: expected parts {{'type': 'text', 'text': a text}} or {{'type': 'image', "
                    f"'image': an image or a path}}, got {part!r:.80}."
                )
    return texts, tuple(images)


def _filled(messages: Sequence[Message], texts: Sequence[str]) -> list[dict[str, Any]]:
    """The messages with other texts, and with the places of their images alone."""
    left = iter(texts)
    return [
        {
            **message,
            "content": next(left)
            if isinstance(message["content"], str)
            else [
                {"type": "text", "text": next(left)} if part["type"] == "text" else {"type": "image"}
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def _rendered(
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin, messages: Sequence[Message], options: dict[str, bool]
) -> str:
    name = type(tokenizer).__name__
    if not tokenizer.chat_template:
        where = getattr(tokenizer, "name_or_path", "") or "made in memory"
        raise InterpError(
            f"this {name} ({where}) has no chat template: its model was probably not trained on chats. "
            "Use a plain prompt, or set tokenizer.chat_template."
        )
    try:
        plain = _filled(messages, [text for _, text in _parts(messages)[0]])
        text = tokenizer.apply_chat_template(plain, tokenize=False, **options)
    except (TemplateError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise InterpError(
            f"the chat template of this {name} refuses messages of the roles {roles}: {error}. Where it has no system "
            "role, begin the first user message with the system text."
        ) from None
    assert isinstance(text, str)
    return text


def _spans(
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    messages: Sequence[Message],
    parts: Sequence[tuple[int, str]],
    text: str,
    options: dict[str, bool],
) -> dict[str, tuple[int, int]]:
    """Where the messages' texts are: found in a rendering with marks in their place, and only if the rest agrees."""
    marked = _filled(messages, [MARK.format(number) for number in range(len(parts))])
    try:
        before, *pairs = MARKED.split(_rendered(tokenizer, marked, options))
    except InterpError:  # the template looks at what the messages say
        return {}
    if not text.startswith(before):
        return {}
    spans: dict[str, tuple[int, int]] = {}
    at = len(before)
    for number, after in zip(map(int, pairs[::2]), pairs[1::2], strict=True):
        message, content = parts[number]
        kept = next(
            (
                form
                for form in (content, content.strip(), content.rstrip(), content.lstrip())
                if text.startswith(form + after, at)
            ),
            None,
        )
        if kept is None:
            return {}
        if kept.strip():
            name = f"message_{message}"
            spans[name] = (spans.get(name, (at, at))[0], at + len(kept))
        at += len(kept) + len(after)
    return spans if at == len(text) else {}


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

"""Prompts that make a model say again what is written into their placeholder (Ghandeharioun et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

from interp.errors import InterpError
from interp.prompts.prompt import Prompt

__all__ = ["REPEATED_WORDS", "repeat_prompt"]

REPEATED_WORDS = ("king", "1135", "hello")


def repeat_prompt(
    words: Sequence[str] = REPEATED_WORDS, relation: str = " ", separator: str = "\n", placeholder: str = "?"
) -> Prompt:
    r"""Words that are each written twice, and a placeholder that is written once.

    The default is `king king\n1135 1135\nhello hello\n?`.

    Arguments:
        words: the words.
        relation: between a word and its repetition.
        separator: between words.
        placeholder: what stands at the end, to be replaced.

    Returns:
        The prompt, with the span `placeholder`.

    Raises:
        InterpError: the placeholder is blank, or `words` is one text.
    """
    if isinstance(words, str):
        raise InterpError(f"expected several words, got one text, {words!r}. Put it in a list.")
    if not placeholder.strip():
        raise InterpError(f"expected a placeholder, the token that is replaced, got {placeholder!r}.")
    before = "".join(f"{word}{relation}{word}{separator}" for word in words)
    return Prompt(before + placeholder, spans={"placeholder": (len(before), len(before) + len(placeholder))})

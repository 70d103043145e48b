"""Prompts that make a model say what is written into their last token (Ghandeharioun et al. 2024)."""

from __future__ import annotations

from difflib import get_close_matches

from interp.errors import InterpError, nearest
from interp.prompts.repeat import repeat_prompt

__all__ = ["IDENTITY_PROMPTS", "identity_prompt"]

# Each of the three is in use somewhere, and they give different numbers, so a result has to say which one it used.
IDENTITY_PROMPTS: dict[str, str] = {
    "king": repeat_prompt(("king", "1135", "hello")).text,
    "cat": repeat_prompt(("cat", "1135", "hello"), relation=" -> ").text,
    "cat_dog": repeat_prompt(("cat", "dog", "1234", "hello"), separator=" ").text,
}


def identity_prompt(name_or_text: str) -> str:
    """The text of an identity prompt.

    Arguments:
        name_or_text: a key of `IDENTITY_PROMPTS`, or the user's own prompt.

    Returns:
        The prompt; the user's own text unchanged.

    Raises:
        InterpError: the text is empty, or one word that is nearly one of the names.
    """
    if name_or_text in IDENTITY_PROMPTS:
        return IDENTITY_PROMPTS[name_or_text]
    if not name_or_text.strip():
        raise InterpError(f"expected an identity prompt, got {name_or_text!r}.{nearest('', IDENTITY_PROMPTS)}")
    misspelt = len(name_or_text.split()) == 1 and get_close_matches(name_or_text, IDENTITY_PROMPTS, cutoff=0.6)
    if misspelt:
        raise InterpError(f"no identity prompt is called {name_or_text!r}.{nearest(name_or_text, IDENTITY_PROMPTS)}")
    return name_or_text

"""Target prompts of the literature by name, and the token of each that is written over: its placeholder.

as_target_prompt("cat", tokenizer)                 # token identity, `cat -> cat\\n1135 -> 1135\\nhello -> hello\\n?`
as_target_prompt("description", tokenizer)         # `Syria: Country in the Middle East, ..., x`
as_target_prompt("country_currency", tokenizer)    # `The official currency of x`
as_target_prompt("chat", tokenizer)                # the repeat prompt in the tokenizer's chat template
as_target_prompt("The capital of x is", tokenizer, position=3)
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from interp.errors import InterpError, nearest
from interp.prompts.identity import IDENTITY_PROMPTS
from interp.prompts.patchscopes import ATTRIBUTES, attribute_prompt, entity_description_prompt
from interp.prompts.prompt import Prompt
from interp.prompts.repeat_chat import repeat_chat_prompt
from interp.prompts.target_prompt import TargetPrompt

if TYPE_CHECKING:  # transformers imports torch, which this module does without
    from transformers import PreTrainedTokenizerBase

__all__ = ["TARGET_NAMES", "as_target_prompt"]

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

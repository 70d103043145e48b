"""Prompts as a model is fed them, the tokens that count as an answer, and the prompts of the papers.

encoded = encode(tokenizer, text, {"query": (10, 14)})  # token ids, and the tokens of characters 10 to 13
ids = answer_tokens(tokenizer, ["Buch"], "first_token")
prompt = translation_prompt([("König", "re")], "Buch", "Deutsch", "Italiano")
chat = chat_prompt(tokenizer, [{"role": "user", "content": "Hello"}])

None of it needs torch. Names of the modules in `_HOMES` are imported when they are first used, so that whoever uses
the others does not depend on that code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from interp.prompts.answers import POLICIES, AnswerTokens, answer_tokens
from interp.prompts.encoding import Encoded, encode
from interp.prompts.identity import IDENTITY_PROMPTS, identity_prompt
from interp.prompts.occurrences import BOUNDARIES, OCCURRENCES, Occurrence, find_word, other_form
from interp.prompts.prompt import Collision, Prompt, Target
from interp.prompts.repeat import repeat_prompt

if TYPE_CHECKING:
    from interp.prompts.chat import chat_prompt
    from interp.prompts.named_targets import TARGET_NAMES, as_target_prompt
    from interp.prompts.patchscopes import (
        ATTRIBUTES,
        attribute_prompt,
        entity_description_prompt,
        few_shot_prompt,
        token_identity_prompt,
    )
    from interp.prompts.repeat_chat import repeat_chat_prompt
    from interp.prompts.shared import SharedPrefix, shared_prefixes
    from interp.prompts.target_prompt import ResolvedTargets, TargetPrompt, TargetPromptBatch
    from interp.prompts.templates import (
        LANGUAGE_NAMES,
        Template,
        cloze_prompt,
        definition_prompt,
        repetition_prompt,
        translation_prompt,
    )

__all__ = [
    "ATTRIBUTES",
    "BOUNDARIES",
    "IDENTITY_PROMPTS",
    "LANGUAGE_NAMES",
    "OCCURRENCES",
    "POLICIES",
    "TARGET_NAMES",
    "AnswerTokens",
    "Collision",
    "Encoded",
    "Occurrence",
    "Prompt",
    "ResolvedTargets",
    "SharedPrefix",
    "Target",
    "TargetPrompt",
    "TargetPromptBatch",
    "Template",
    "answer_tokens",
    "as_target_prompt",
    "attribute_prompt",
    "chat_prompt",
    "cloze_prompt",
    "definition_prompt",
    "encode",
    "entity_description_prompt",
    "few_shot_prompt",
    "find_word",
    "identity_prompt",
    "other_form",
    "repeat_chat_prompt",
    "repeat_prompt",
    "repetition_prompt",
    "shared_prefixes",
    "token_identity_prompt",
    "translation_prompt",
]

_HOMES = {
    "chat": ("chat_prompt",),
    "named_targets": ("TARGET_NAMES", "as_target_prompt"),
    "patchscopes": (
        "ATTRIBUTES",
        "attribute_prompt",
        "entity_description_prompt",
        "few_shot_prompt",
        "token_identity_prompt",
    ),
    "repeat_chat": ("repeat_chat_prompt",),
    "shared": ("SharedPrefix", "shared_prefixes"),
    "target_prompt": ("ResolvedTargets", "TargetPrompt", "TargetPromptBatch"),
    "templates": (
        "LANGUAGE_NAMES",
        "Template",
        "cloze_prompt",
        "definition_prompt",
        "repetition_prompt",
        "translation_prompt",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"interp.prompts.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'interp.prompts' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

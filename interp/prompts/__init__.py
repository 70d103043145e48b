"""Prompts as a model is fed them, the tokens that count as an answer, and the prompts of the papers.

encoded = encode(tokenizer, text, {"query": (10, 14)})  # token ids, and the tokens of characters 10 to 13
ids = answer_tokens(tokenizer, ["Buch"], "first_token")
prompt = translation_prompt([("König", "re")], "Buch", "Deutsch", "Italiano")
chat = chat_prompt(tokenizer, [{"role": "user", "content": "Hello"}])

None of it needs torch.
"""

from __future__ import annotations

from interp.prompts.answers import POLICIES, AnswerTokens, SharedPrefix, answer_tokens, shared_prefixes
from interp.prompts.chat import chat_prompt, repeat_chat_prompt
from interp.prompts.encoding import Encoded, encode
from interp.prompts.images import Media, encode_with_images, with_images
from interp.prompts.occurrences import BOUNDARIES, OCCURRENCES, Occurrence, find_word, other_form
from interp.prompts.patchscopes import (
    ATTRIBUTES,
    IDENTITY_PROMPTS,
    attribute_prompt,
    entity_description_prompt,
    few_shot_prompt,
    identity_prompt,
    repeat_prompt,
    token_identity_prompt,
)
from interp.prompts.prompt import Collision, Prompt, Target
from interp.prompts.target_prompt import (
    TARGET_NAMES,
    ResolvedTargets,
    TargetPrompt,
    TargetPromptBatch,
    as_target_prompt,
)
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
    "Media",
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
    "encode_with_images",
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
    "with_images",
]

"""Prompts as a model is fed them, the tokens that count as an answer, and prompts that repeat what is patched in.

encoded = encode(tokenizer, text, {"query": (10, 14)})  # token ids, and the tokens of characters 10 to 13
ids = answer_tokens(tokenizer, ["Buch"], "first_token")
text = identity_prompt("king")
"""

from interp.prompts.answers import POLICIES, AnswerTokens, answer_tokens
from interp.prompts.encoding import Encoded, encode
from interp.prompts.identity import IDENTITY_PROMPTS, identity_prompt

__all__ = ["IDENTITY_PROMPTS", "POLICIES", "AnswerTokens", "Encoded", "answer_tokens", "encode", "identity_prompt"]

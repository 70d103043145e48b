"""What a model says in words: the nearest tokens of a hidden state; and a tokenizer without space before a text."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["bare_tokenizer", "closest_tokens"]


def closest_tokens(
    model: StandardizedTransformer, hidden: Tensor, k: int = 5
) -> dict[str, float] | list[dict[str, float]]:
    """The most probable tokens of hidden states, read out through the model's own tail.

    Arguments:
        model: the model.
        hidden: (hidden,) or (row, hidden).
        k: how many tokens.

    Returns:
        Token -> probability, best first, one dictionary, or one a row. Always k entries: a token that several ids
        share, or that the tokenizer lacks, has its id behind it (`the#262`, `#50300`).

    Raises:
        InterpError: `hidden` has other axes, or k is out of range.
    """
    if hidden.dim() not in (1, 2):
        raise InterpError(f"expected hidden (hidden,) or (row, hidden), got shape {tuple(hidden.shape)}.")
    if not 1 <= k <= model.vocab_size:
        raise InterpError(f"k: expected 1 to {model.vocab_size} (the vocabulary), got {k}.")
    probabilities = model.readout(hidden).float().softmax(-1)
    top = probabilities.topk(k, dim=-1)
    if hidden.dim() == 1:
        return _named(model.tokenizer, top.indices, top.values)
    return [_named(model.tokenizer, ids, values) for ids, values in zip(top.indices, top.values, strict=True)]


def _named(tokenizer: PreTrainedTokenizerBase, ids: Tensor, values: Tensor) -> dict[str, float]:
    named: dict[str, float] = {}
    for token_id, value in zip(ids.tolist(), values.tolist(), strict=True):
        text = tokenizer.decode([token_id]) if token_id < len(tokenizer) else ""
        assert isinstance(text, str)
        named[f"{text}#{token_id}" if text in named or not text else text] = value
    return named


def bare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that puts no space before a text, and so tokenizes a word as inside a sentence.

    SentencePiece tokenizers (Llama 2, Mistral) put one there by default. The pieces that do it, a `Metaspace`
    pre-tokenizer, a `Prepend` normalizer or a byte-level pre-tokenizer, are set not to.

    Arguments:
        tokenizer: a transformers tokenizer.

    Raises:
        InterpError: it is a slow one, whose rules are code.
    """
    if not tokenizer.is_fast:
        raise InterpError(f"{type(tokenizer).__name__} is a slow tokenizer: its space before a text cannot be unset.")
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        rules[part] = _without_space(rules[part])
    bare = copy.deepcopy(tokenizer)
    bare._tokenizer = Tokenizer.from_str(json.dumps(rules))
    return bare


def _without_space(rule: dict | None) -> dict | None:
    """A rule of tokenizer.json with its prefix space off; in a sequence, in each of its rules."""
    if rule is None:
        return None
    for key in ("pretokenizers", "normalizers", "decoders"):
        if key in rule:
            rules = [_without_space(part) for part in rule[key]]
            return {**rule, key: [part for part in rules if part is not None]}
    if rule["type"] == "Prepend" or (rule["type"] == "Strip" and rule.get("content") == " "):
        return None
    if rule["type"] == "Metaspace":
        return {**rule, "prepend_scheme": "never"}
    if "add_prefix_space" in rule and rule["type"] == "ByteLevel":
        return {**rule, "add_prefix_space": False}
    return rule

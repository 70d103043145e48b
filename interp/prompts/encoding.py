"""Encodes a text with marked characters as token ids with marked tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from interp.errors import InterpError
from interp.positions import Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interp.prompts.images import Media

__all__ = ["Encoded", "bare_tokenizer", "encode"]


SHOWN = 60  # characters of a text in a message


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as a model is fed it.

    Arguments:
        input_ids: token ids with the tokenizer's start token, unpadded.
        spans: name -> (first token, one past the last token), or a `TokenSet`, indices into `input_ids`.
        characters: name -> (first character, one past the last character) of the text that these tokens stand for; more
            than was marked where a token reaches over it.
        media: what the forward pass is fed beside the ids; None: nothing.
    """

    input_ids: list[int]
    spans: Mapping[str, Span]
    characters: dict[str, tuple[int, int]] = field(default_factory=dict)
    media: Media | None = None


def encode(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    spans: Mapping[str, tuple[int, int]] | None = None,
    *,
    add_special_tokens: bool = True,
) -> Encoded:
    """Tokenize a prompt and find the tokens of marked characters.

    Special tokens that the tokenizer puts before the text (`<s>`) are kept. Those that it would put after the text
    (`</s>`) are left out, because the model is asked to go on with the text. Those that the text itself has are read as
    special tokens.

    A span covers every token that has a part of its characters, so it may reach over them: where ` "Buch` is one token,
    the span of `Buch` is that token. Tokens are found by the offsets that the tokenizer reports, not by comparing text.

    Arguments:
        tokenizer: a transformers tokenizer.
        text: the prompt.
        spans: name -> (first character, one past the last character).
        add_special_tokens: whether the tokenizer adds its own. False for a text that has all of them, as a chat
            template writes it; `interp.prompts.chat_prompt` takes care of that.

    Returns:
        The token ids and the token ranges of the spans.

    Raises:
        InterpError: a span is empty, is outside the text or has no token of its own (a tokenizer may drop characters,
            such as spaces at a word's edge); spans are asked for and the tokenizer gives no offsets; the text begins
            with the start token that the tokenizer adds itself, gives no token, or is not valid Unicode.
    """
    spans = spans or {}
    check_unicode(text)
    for name, (start, stop) in spans.items():
        if not 0 <= start < stop <= len(text):
            raise InterpError(
                f"span {name!r}: expected a non-empty range inside the {len(text)} characters of {_shown(text)}, "
                f"got {start}:{stop}."
            )
    if spans and not tokenizer.is_fast:
        raise InterpError(
            f"{type(tokenizer).__name__} reports no character offsets, so the tokens of span "
            f"{', '.join(map(repr, spans))} cannot be found. Use a fast tokenizer of this model (a tokenizer.json in "
            "its folder), or ask for positions without spans, e.g. `last`."
        )
    batch = tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=tokenizer.is_fast,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    input_ids: list[int] = list(batch["input_ids"])
    added: list[int] = list(batch["special_tokens_mask"])  # 1 where the tokenizer added the token itself
    if 0 in added:
        stop_of_text = len(added) - added[::-1].index(0)
        input_ids = input_ids[:stop_of_text]
    if not input_ids:
        raise InterpError(f"expected a prompt with at least one token, got {_shown(text)}.")
    start_token = tokenizer.bos_token
    if start_token and added[0] == 1 and input_ids[0] == tokenizer.bos_token_id and text.startswith(start_token):
        raise InterpError(
            f"the prompt {_shown(text)} begins with {start_token!r}, which the tokenizer adds itself: the model would "
            "see it twice. Remove it from the prompt; for a chat, use `interp.prompts.chat_prompt`, or pass "
            "add_special_tokens=False where the text has every special token."
        )
    found, characters = {}, {}
    offsets = batch["offset_mapping"][: len(input_ids)] if spans else []
    for name, (start, stop) in spans.items():
        # A token that the tokenizer added, or one that stands for no character, has an empty range and never overlaps.
        tokens = [index for index, (first, end) in enumerate(offsets) if first < stop and end > start and first < end]
        # A space that the tokenizer puts before a text claims the first character's place; it is none of it.
        while len(tokens) > 1 and _is_added_space(tokenizer, input_ids[tokens[0]], text[slice(*offsets[tokens[0]])]):
            del tokens[0]
        if not tokens:
            raise InterpError(
                f"span {name!r}: the tokenizer gives the characters {text[start:stop]!r} ({start}:{stop} of "
                f"{_shown(text)}) no token of their own."
            )
        found[name] = (tokens[0], tokens[-1] + 1)
        characters[name] = (offsets[tokens[0]][0], offsets[tokens[-1]][1])
    return Encoded(input_ids=input_ids, spans=found, characters=characters)


def _is_added_space(tokenizer: PreTrainedTokenizerBase, token_id: int, characters: str) -> bool:
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return not text.strip() and bool(characters.strip())


def check_unicode(text: str) -> None:
    """Raise `InterpError` for what is no text, or has half of a surrogate pair, which no tokenizer can read."""
    if not isinstance(text, str):
        raise InterpError(f"expected a text, got {text!r:.80}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InterpError(
            f"expected valid Unicode, got half of a surrogate pair ({text[error.start : error.end]!r}, character "
            f"{error.start} of {_shown(text)}). The text was cut or decoded wrongly."
        ) from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


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
    from tokenizers import Tokenizer  # a config is checked without it

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

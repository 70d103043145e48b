"""Up to how many tokens a model computes alike: what is found out on a few tokens holds for no more than these.

A window, a chosen number of keys, a chunk: a prompt that fits takes one path through the model, a longer one another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["SMALL", "regime_of", "regimes", "rotations_by_length"]

SMALL = 9
"""Tokens of a small case. It is tried beyond a limit with as many tokens more than that."""
_BEYOND = 4  # so many tokens past a limit show what is behind it

# Fields of a config, whatever a family puts before or behind these words: sliding and local windows (also Doge's window
# of kept keys), chunks of attention and of state-space layers, keys and blocks that an indexer chooses, blocks of
# linear attention, room for tokens in an expert, and the tokens from which rotation or the scale of attention changes
# (Llama 4, Ministral 3, Inkling).
_FIELDS = re.compile(
    r"window|chunk|index_topk$|block_size|kpool|capacity|num_hash|bucket|max_distance"
    r"|original_max_position|floor_scale|n_floor"
)
_NO_TOKENS = re.compile(r"layers|pattern|ind(ices|exes)|feed_forward|freq|factor")  # counts of something else
_TOWERS = re.compile(r"vision|audio|video|speech|decoder_config")  # of what is not the text model


def regimes(model: StandardizedTransformer, longest: int) -> list[int]:
    """The limits that a prompt passes, ascending, after 0 for the regime of few tokens.

    Limits that a small case passes too are left out; so is the length from which rotation depends on the longest prompt
    of a pass (`longrope`, `dynamic`), of which `interp.forward.rotary` knows.

    Arguments:
        model: the model.
        longest: tokens of the longest prompt, or of the row that it stands in.
    """
    if longest <= SMALL - _BEYOND:
        return [0]
    config = model._module.config.get_text_config()
    found = set(_limits(config, by_length=bool(rotations_by_length(config))))
    return [0, *sorted(limit for limit in found if SMALL - _BEYOND < limit < longest)]


def rotations_by_length(config: Any) -> list[Mapping[str, Any]]:
    """What a text model's config says of rotations whose frequencies depend on the longest prompt of a pass."""
    rope = getattr(config, "rope_parameters", None) or {}
    entries = [rope] if "rope_type" in rope else [entry for entry in rope.values() if isinstance(entry, Mapping)]
    return [entry for entry in entries if entry.get("rope_type") in ("longrope", "dynamic")]


def regime_of(model: StandardizedTransformer, tokens: int) -> int:
    """The largest limit that a prompt of so many tokens passes; 0: none."""
    return regimes(model, tokens)[-1]


def _limits(config: Any, *, by_length: bool) -> Iterator[int]:
    values = vars(config) if isinstance(config, PreTrainedConfig) else config
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig | Mapping):
            if not _TOWERS.search(str(name)):
                yield from _limits(value, by_length=by_length)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0 and _is_limit(name, by_length):
            yield value
    blocks, size = values.get("index_topk_blocks"), values.get("index_block_size")
    if blocks and size:
        yield blocks * size


def _is_limit(name: Any, by_length: bool) -> bool:
    if not isinstance(name, str) or not _FIELDS.search(name) or _NO_TOKENS.search(name):
        return False
    return not (by_length and "original_max" in name)

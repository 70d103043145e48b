"""Attention over a prefix that many rows share, without a copy of its keys for each row.

Families that look their attention function up with transformers' `AttentionInterface` are handed this one while rows
walk: scores against the prefix are one matrix product over all rows, scores against a row's own tokens are its own,
and one softmax goes over both. Other families are given the keys of the prefix repeated (`interp.forward.prefix`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from interp.forward.packing import Packed

__all__ = ["Shared", "hold", "sharing"]


@dataclass(frozen=True)
class Shared:
    """Keys and values of a prefix.

    Arguments:
        keys, values: (prompt, key heads, position, head size).
    """

    keys: Tensor
    values: Tensor


class _Walking(threading.local):
    """What the attention of this thread looks at: nothing, unless rows walk."""

    depth = 0
    held: Shared | None = None
    packed: Packed | None = None


_walking = _Walking()
_lock = threading.Lock()
_installed = 0
_original: Callable[..., Any] = AttentionInterface.get_interface


@contextmanager
def sharing(packed: Packed | None = None) -> Iterator[None]:
    """Within this, attention functions of this thread also look at what is held for them.

    Arguments:
        packed: how prompts stand in the one row that goes through the model; None: each is a row.
    """
    global _installed, _original
    with _lock:
        if not _installed:
            _original = AttentionInterface.get_interface
            AttentionInterface.get_interface = _get_interface
        _installed += 1
    _walking.depth += 1
    before, _walking.packed = _walking.packed, packed
    try:
        yield
    finally:
        _walking.depth -= 1
        _walking.held, _walking.packed = None, before
        with _lock:
            _installed -= 1
            if not _installed:
                AttentionInterface.get_interface = _original


def hold(prefix: Shared) -> bool:
    """Hold a prefix for the next attention function that is called.

    Returns:
        Whether anybody will look: False outside of `sharing`.
    """
    if not _walking.depth:
        return False
    _walking.held = prefix
    return True


def _get_interface(self: AttentionInterface, attn_implementation: str, default: Callable[..., Any]) -> Any:
    base = _original(self, attn_implementation, default)

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        held, _walking.held = _walking.held, None
        function = base if held is None else partial(_attend, held)
        if _walking.packed is None:
            return function(module, query, key, value, *args, **kwargs)
        return _walking.packed.through(function, module, query, key, value, *args, **kwargs)

    return attend


def _attend(
    prefix: Shared,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,  # what else a family tells its function (windows, dropout) is in the mask or does not apply
) -> tuple[Tensor, None]:
    """Attention of rows over a shared prefix and their own tokens.

    Arguments:
        prefix: of p prompts; row i goes on from prompt i modulo p.
        module: the attention module that asks.
        query: (row, heads, position, head size).
        key, value: (row, key heads, own token, head size), the rows' own; positions are the last of them.
        attention_mask: (1 or row, 1 or heads, position, prefix and own token), bool or added to the scores; None: all
            before a position, and itself, is seen.
        scaling: of the scores.
        softcap: c of c tanh(scores / c).
        s_aux: (heads,), logits of attention sinks.

    Returns:
        (row, position, heads, head size), and no weights.
    """
    rows, heads, positions, size = query.shape
    key_heads, prompts, before, after = key.shape[1], prefix.keys.shape[0], prefix.keys.shape[2], key.shape[2]
    group = heads // key_heads
    query = query * (size**-0.5 if scaling is None else scaling)
    # Rows of one prompt, heads of one group and positions stand side by side: one product over all of them.
    many = query.reshape(rows // prompts, prompts, key_heads, group * positions, size).permute(1, 2, 0, 3, 4)
    many = many.reshape(prompts, key_heads, -1, size)
    to_prefix = many @ prefix.keys.transpose(-1, -2)  # (prompt, key heads, row and group and position, before)
    to_prefix = to_prefix.reshape(prompts, key_heads, rows // prompts, group * positions, before).permute(2, 0, 1, 3, 4)
    own = query.reshape(rows, key_heads, group * positions, size)
    to_own = (own * key).sum(-1, keepdim=True) if after == 1 else own @ key.transpose(-1, -2)
    scores = torch.cat([to_prefix.reshape(rows, key_heads, group * positions, before), to_own], dim=-1)
    scores = scores.reshape(rows, heads, positions, before + after)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is None:
        if positions > 1:
            seen = torch.ones(positions, before + after, dtype=torch.bool, device=scores.device)
            scores = scores.masked_fill(~seen.tril(before + after - positions), -torch.inf)
    elif attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    else:
        scores = scores + attention_mask
    if s_aux is not None:
        sinks = s_aux.to(scores).reshape(1, heads, 1, 1).expand(rows, heads, positions, 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(-1, dtype=torch.float32)[..., :-1].to(query.dtype)
    else:
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    on_prefix = weights[..., :before].reshape(rows // prompts, prompts, key_heads, group * positions, before)
    on_prefix = on_prefix.permute(1, 2, 0, 3, 4).reshape(prompts, key_heads, -1, before)
    value_size = value.shape[-1]
    read = (on_prefix @ prefix.values).reshape(prompts, key_heads, rows // prompts, group * positions, value_size)
    read = read.permute(2, 0, 1, 3, 4).reshape(rows, key_heads, group * positions, value_size)
    on_own = weights[..., before:].reshape(rows, key_heads, group * positions, after)
    read = read + (on_own * value if after == 1 else on_own @ value)
    return read.reshape(rows, heads, positions, value_size).transpose(1, 2).contiguous(), None

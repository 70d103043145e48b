"""Attention over one KV cache of a shared prefix for many rows, and over packed prompts.

Families that look their attention function up with transformers' `AttentionInterface` get ours while rows walk or
continue from a prefix, or where prompts are packed (`interp.forward.packing`): in the passes of one model, in one
thread (`interp.attention.switch`). Other families get the keys of the prefix repeated (`interp.forward.prefix`), and
padded prompts.

Over a prefix that many rows share, no row has a copy of its keys: scores against the prefix are one matrix product over
all rows, scores against a row's own tokens are its own. One softmax goes over both; or each part has a softmax of its
own, in a fused kernel, and the two are weighed by their sums (Hydragen, Juravsky et al. 2024, arXiv:2402.05099).

Shapes, behind each step: B rows = C copies of P prompts; H heads = K key heads, each for a group of G; Q positions (of
the queries); S tokens of the prefix ("before"), T own tokens ("after"); D head size, E head size of the values.
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

from interp.attention.switch import switch_off, switch_on
from interp.forward.packing import Packed

__all__ = ["Shared", "attend_to", "hold", "sharing"]


@dataclass(eq=False)
class _Sharing:
    """What the attention of a model looks at in the passes at hand.

    Arguments:
        module: the model.
        packed: how prompts stand in the one row that goes through it; None: each is a row.
        held: the prefix that the next attention function looks at.
    """

    module: nn.Module
    packed: Packed | None
    held: Shared | None = None

    def attend(
        self,
        base: Callable[..., Any],
        _: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        held, self.held = self.held, None
        function = base if held is None else partial(attend_to, held)
        if self.packed is None:
            return function(module, query, key, value, *args, **kwargs)
        return self.packed.through(function, module, query, key, value, *args, **kwargs)


class _Here(threading.local):
    """What is shared in this thread, the innermost last: what a pass calls may run another model."""

    def __init__(self) -> None:
        self.sharing: list[_Sharing] = []


_here = _Here()


@contextmanager
def sharing(module: nn.Module, packed: Packed | None = None, part: nn.Module | None = None) -> Iterator[None]:
    """Within this, attention functions of a model, in this thread, also look at what is held for them.

    Arguments:
        module: the model.
        packed: how prompts stand in the one row that goes through it; None: each is a row.
        part: the one module of it that is run; None: all of it.
    """
    shared = _Sharing(module, packed)
    switched = switch_on(frozenset((part or module).modules()), shared.attend)
    _here.sharing.append(shared)
    try:
        yield
    finally:
        _here.sharing.remove(shared)
        switch_off(switched)


def hold(module: nn.Module, prefix: Shared) -> bool:
    """Hold a prefix for the attention function of a model that is called next.

    Arguments:
        module: the model.
        prefix: what it is to look at, beside its own keys.

    Returns:
        Whether anybody will look: False outside of `sharing`.
    """
    for shared in reversed(_here.sharing):
        if shared.module is module:
            shared.held = prefix
            return True
    return False


# Scores of a row and key head that are not worth a matrix product: of many tiny ones, torch makes slow loops.
_FEW = 6


@dataclass(frozen=True)
class Shared:
    """Keys and values of a prefix.

    Arguments:
        keys, values: (prompt, key heads, position, head size).
    """

    keys: Tensor
    values: Tensor


def attend_to(
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
    if _can_merge(query, value, attention_mask, softcap):
        return _merged(prefix, query, key, value, attention_mask, scaling, s_aux), None
    rows, heads, positions, size = query.shape
    key_heads, prompts, before, after = key.shape[1], prefix.keys.shape[0], prefix.keys.shape[2], key.shape[2]
    group = heads // key_heads
    query = query * (size**-0.5 if scaling is None else scaling)  # (B, H, Q, D)
    # Rows of one prompt, heads of one group and positions stand side by side: one product over all of them.
    many = query.reshape(rows // prompts, prompts, key_heads, group * positions, size)  # (C, P, K, GQ, D)
    many = many.permute(1, 2, 0, 3, 4).reshape(prompts, key_heads, -1, size)  # (P, K, CGQ, D)
    to_prefix = many @ prefix.keys.transpose(-1, -2)  # (P, K, CGQ, S)
    to_prefix = to_prefix.reshape(prompts, key_heads, rows // prompts, group * positions, before)  # (P, K, C, GQ, S)
    to_prefix = to_prefix.permute(2, 0, 1, 3, 4)  # (C, P, K, GQ, S)
    own = query.reshape(rows, key_heads, group * positions, size)  # (B, K, GQ, D)
    few = after == 1 or group * positions * after <= _FEW
    to_own = (own[..., None, :] * key[..., None, :, :]).sum(-1) if few else own @ key.transpose(-1, -2)  # (B, K, GQ, T)
    scores = torch.cat([to_prefix.reshape(rows, key_heads, group * positions, before), to_own], dim=-1)
    scores = scores.reshape(rows, heads, positions, before + after)  # (B, H, Q, S + T)
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
        sinks = s_aux.to(scores).reshape(1, heads, 1, 1).expand(rows, heads, positions, 1)  # (B, H, Q, 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(-1, dtype=torch.float32)[..., :-1].to(query.dtype)
    else:
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    on_prefix = weights[..., :before].reshape(rows // prompts, prompts, key_heads, group * positions, before)
    on_prefix = on_prefix.permute(1, 2, 0, 3, 4).reshape(prompts, key_heads, -1, before)  # (P, K, CGQ, S)
    value_size = value.shape[-1]
    read = on_prefix @ prefix.values  # (P, K, CGQ, E)
    read = read.reshape(prompts, key_heads, rows // prompts, group * positions, value_size)  # (P, K, C, GQ, E)
    read = read.permute(2, 0, 1, 3, 4).reshape(rows, key_heads, group * positions, value_size)  # (B, K, GQ, E)
    on_own = weights[..., before:].reshape(rows, key_heads, group * positions, after)  # (B, K, GQ, T)
    if after == 1:
        read = read + on_own * value
    else:
        read = read + ((on_own[..., None] * value[..., None, :, :]).sum(-2) if few else on_own @ value)
    return read.reshape(rows, heads, positions, value_size).transpose(1, 2).contiguous(), None  # (B, Q, H, E)


def _can_merge(query: Tensor, value: Tensor, mask: Tensor | None, softcap: float | None) -> bool:
    """Whether there is a fused kernel that gives its sums, and it is the faster one."""
    alike = query.shape[-1] == value.shape[-1] and (mask is not None or query.shape[2] == value.shape[2])
    several = query.shape[2] > 1 and query.device.type == "cpu"
    return several and alike and softcap is None and (mask is None or mask.shape[1] == 1)


def _merged(
    prefix: Shared,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """What `attend_to` gives, by a softmax over each part; masks are for all heads."""
    rows, heads, positions, size = query.shape
    key_heads, prompts, before = key.shape[1], prefix.keys.shape[0], prefix.keys.shape[2]
    group, copies = heads // key_heads, rows // prompts
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    # As in `attend_to`: rows of one prompt, heads of one group and positions stand side by side.
    many = query.reshape(copies, prompts, key_heads, group, positions, size)  # (C, P, K, G, Q, D)
    many = many.permute(1, 2, 0, 3, 4, 5).reshape(prompts, key_heads, -1, size)  # (P, K, CGQ, D)
    of_prefix = None if mask is None else mask[..., :before]
    if of_prefix is not None:
        of_prefix = of_prefix.expand(rows, group, positions, before)  # (B, G, Q, S)
        of_prefix = of_prefix.reshape(copies, prompts, -1, before)  # (C, P, GQ, S)
        of_prefix = of_prefix.transpose(0, 1).reshape(prompts, 1, -1, before)  # (P, 1, CGQ, S)
    # (P, K, CGQ, D), and the logarithms of the sums of exponentials, (P, K, CGQ)
    on_prefix, prefix_sum = _flash(many, prefix.keys, prefix.values, attn_mask=of_prefix, scale=scaling)
    if group > 1:  # (B, H, T, D) each
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    of_own = None if mask is None else mask[..., before:]
    # (B, H, Q, D), and (B, H, Q)
    on_own, own_sum = _flash(query, key, value, is_causal=mask is None, attn_mask=of_own, scale=scaling)
    # To the order in which the rows' own part lies.
    shape = (prompts, key_heads, copies, group, positions)
    on_prefix = on_prefix.unflatten(2, shape[2:]).permute(2, 0, 4, 1, 3, 5)  # (C, P, Q, K, G, D)
    prefix_sum = prefix_sum.unflatten(2, shape[2:]).permute(2, 0, 4, 1, 3)  # (C, P, Q, K, G)
    on_own = on_own.transpose(1, 2).reshape(on_prefix.shape)  # (B, Q, H, D) as (C, P, Q, K, G, D)
    own_sum = own_sum.transpose(1, 2).reshape(prefix_sum.shape)  # (B, Q, H) as (C, P, Q, K, G)
    weight = torch.sigmoid(prefix_sum - own_sum)[..., None]  # (C, P, Q, K, G, 1)
    read = torch.lerp(on_own, on_prefix, weight.to(on_own.dtype))
    if sinks is not None:
        left = torch.logaddexp(prefix_sum, own_sum) - sinks.to(own_sum).view(key_heads, group)  # (C, P, Q, K, G)
        read = read * torch.sigmoid(left)[..., None].to(read.dtype)
    return read.reshape(rows, positions, heads, size)  # (B, Q, H, D)


_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # gives logarithms of its sums

"""Plain transformers with an edit inside attention made by hand: the slow twins of writing a point."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.interp.attention.models import feed

Edit = Callable[[Tensor], Tensor]


def eager_by_hand(layer: int, kind: str, edit: Edit, sink: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Eager attention written out, with an edit in one layer.

    Arguments:
        layer, kind: where the edit is made.
        edit: the value -> the value in its place.
        sink: `none`; `column`, a logit more in each row (GPT-OSS); `scale`, what is left of the row beside the sink
            multiplies what attention gives (Granite with sliding windows).
    """

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        scaling: float | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        def at(name: str, x: Tensor) -> Tensor:
            return edit(x.clone()) if (name, module.layer_idx) == (kind, layer) else x

        query, key, value = at("q", query), at("k", key), at("v", value)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = (query @ key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = at("scores", scores + attention_mask)
        if sink == "column":
            column = module.sinks[None, :, None, None].expand(*scores.shape[:-1], 1)
            pattern = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
        else:
            pattern = scores.softmax(-1)
        pattern = at("pattern", pattern)
        z = pattern @ value
        if sink == "scale":
            z = z * torch.sigmoid(scores.logsumexp(-1, keepdim=True) - module.sinks[None, :, None, None])
        return z.transpose(1, 2).contiguous(), pattern

    return attention


@contextmanager
def eager_replaced(module: nn.Module, attention: Callable[..., Any]) -> Iterator[None]:
    """A plain model's eager attention replaced while this stands."""
    family = sys.modules[type(module).__module__]
    own = family.eager_attention_forward
    family.eager_attention_forward = attention
    try:
        yield
    finally:
        family.eager_attention_forward = own


@contextmanager
def softmax_edited(layer: int, kind: str, edit: Edit) -> Iterator[None]:
    """`scores` or `pattern` edited at the one softmax that each layer of a plain dense model calls."""
    own, calls = nn.functional.softmax, []

    def softmax(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(x)
        here = len(calls) - 1 == layer
        heads = x.unflatten(0, (-1, 4)) if x.dim() == 3 else x  # XGLM has batch and heads in one axis
        if here and kind == "scores":
            x = edit(heads.clone()).reshape(x.shape)
        out = own(x, *args, **kwargs)
        return edit(out.reshape(heads.shape).clone()).reshape(out.shape) if here and kind == "pattern" else out

    nn.functional.softmax = softmax
    try:
        yield
    finally:
        nn.functional.softmax = own


@contextmanager
def features_zeroed(projection: nn.Module, features: slice) -> Iterator[None]:
    """Features of what a projection gives set to zero while this stands."""

    def zero(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., features] = 0
        return output

    hook = projection.register_forward_hook(zero)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def plain_logits(module: nn.Module, **more: Any) -> Tensor:
    """What a plain model gives for the padded prompts."""
    return module(**feed(module, **more)).logits

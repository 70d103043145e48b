"""Plain transformers, changed by hand: the slow twin. One prompt at a time, without padding or a key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

IDS = [[1, 17, 250, 33, 94, 12, 7], [1, 88, 5, 260]]
PatternChange = Callable[[int, Tensor], None]
"""Given a layer and its pattern (1, head, query, key), changes it in place."""

_change: list[PatternChange] = []


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    there = torch.ones(scores.shape[-2:]).tril().bool()
    pattern = scores.masked_fill(~there, -torch.inf).softmax(-1)
    for change in _change:
        change(module.layer_idx, pattern)  # type: ignore[arg-type]
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


AttentionInterface.register("by_hand", _attention)


@contextmanager
def changed(
    module: Any, pattern: PatternChange | None = None, outputs: Mapping[str, Callable[[Tensor], Tensor]] | None = None
) -> Iterator[None]:
    """In its block attention is computed by hand, and modules' outputs are replaced.

    Arguments:
        module: a transformers model.
        pattern: changes the pattern of each layer.
        outputs: path of a module -> from its output (1, position, number) to what takes its place; of a path that ends
            in `.input`, from its first input.
    """
    before, module.config._attn_implementation = module.config._attn_implementation, "by_hand"
    handles = []
    for path, function in (outputs or {}).items():
        part = module.get_submodule(path.removesuffix(".input"))
        if path.endswith(".input"):
            handles.append(part.register_forward_pre_hook(lambda _, args, f=function: (f(args[0]), *args[1:])))
        else:
            handles.append(part.register_forward_hook(lambda _, __, output, f=function: _replaced(output, f)))
    if pattern is not None:
        _change.append(pattern)
    try:
        yield
    finally:
        _change.clear()
        module.config._attn_implementation = before
        for handle in handles:
            handle.remove()


def _replaced(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return function(output) if isinstance(output, Tensor) else (function(output[0]), *output[1:])


@torch.no_grad()
def logits_of(module: Any, ids: Sequence[int]) -> Tensor:
    """(vocabulary,), behind the last token."""
    logits: Tensor = module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    return logits


def written(module: Any, ids: Sequence[int], new: int, pattern: Callable[[int], PatternChange]) -> list[Tensor]:
    """The logits that each of some new tokens is chosen from, greedily.

    Arguments:
        module: a transformers model.
        ids: of the prompt.
        new: how many tokens.
        pattern: from how many tokens there are to the change.
    """
    text, found = list(ids), []
    for _ in range(new):
        with changed(module, pattern(len(text))):
            found.append(logits_of(module, text))
        text.append(int(found[-1].argmax()))
    return found


def batch_of(rows: Sequence[Sequence[int]], side: str = "left") -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of prompts, padded on a side."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        empty, own = [0] * (width - len(row)), [1] * len(row)
        ids.append([*empty, *row] if side == "left" else [*row, *empty])
        mask.append([*empty, *own] if side == "left" else [*own, *empty])
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

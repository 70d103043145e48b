"""Values of batches put together: along the examples, with places for the most positions that one of them has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.compat.easyroutine.cache_files import ValueWithInfo

__all__ = ["Aggregation", "Layout", "aligned", "folded", "offsets", "size_of", "together", "widest"]

Layout = dict[Any, int]
"""Names along an axis of positions, in their order -> how many places each has."""
Aggregation = Callable[..., Any]


def offsets(widths: Layout) -> dict[Any, list[int]]:
    """Where along an axis the places of each name are."""
    found, start = {}, 0
    for name, width in widths.items():
        found[name] = list(range(start, start + width))
        start += width
    return found


def widest(layouts: Sequence[Layout]) -> Layout:
    """The names of several axes, with the most places that each has."""
    found: Layout = {}
    for layout in layouts:
        for name, width in layout.items():
            found[name] = max(width, found.get(name, 0))
    return found


def aligned(
    value: Any, old: Mapping[int, Layout], new: Mapping[int, Layout], padding_id: int, fill: float = torch.nan
) -> Any:
    """A value with its axes of positions as others need them."""
    if isinstance(value, dict):
        return {name: aligned(each, old, new, padding_id, fill) for name, each in value.items()}
    if not isinstance(value, Tensor):
        return value
    for axis, layout in new.items():
        had = old.get(axis, {})
        if had == layout:
            continue
        pieces = dict(zip(had, value.split(list(had.values()), dim=axis), strict=True))
        parts = []
        for name, width in layout.items():
            piece = pieces.get(name, value.narrow(axis, 0, 0))
            shape = [*piece.shape]
            shape[axis] = width - piece.shape[axis]
            parts += [piece, value.new_full(shape, fill if value.is_floating_point() else padding_id)]
        value = torch.cat(parts, dim=axis)
    return value


def folded(function: Aggregation, values: Sequence[Any], *, begins: bool) -> Any:
    """What a function of the user's makes of values, one after the other."""
    takes_two = len(inspect.signature(function).parameters) > 1
    held = function(None, values[0]) if begins and takes_two else values[0]
    for value in values[1:]:
        held = function(held, value) if takes_two else function([held, value])
    return held


def together(values: list[Any]) -> Any:
    """Values of several batches as one."""
    if all(isinstance(value, Tensor) for value in values):
        rows = [value.reshape(1) if value.dim() == 0 else value for value in values]
        if len({row.shape[1:] for row in rows}) == 1:
            joined = torch.cat([row.to(rows[0].device) for row in rows])
            infos = {value.info() for value in values if isinstance(value, ValueWithInfo)}
            return ValueWithInfo.of(joined, infos.pop()) if len(infos) == 1 else joined
        return list(values)
    if all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        return {name: together([value[name] for value in values]) for name in values[0]}
    return [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]


def size_of(value: Any) -> int:
    """Bytes of the tensors of a value."""
    if isinstance(value, Tensor):
        return value.element_size() * value.nelement()
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 0

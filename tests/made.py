"""Which tensors a piece of code makes, a measure of its memory without a clock; and hooks that watch a model."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorsMade(TorchDispatchMode):
    """While it is entered, the shapes of all tensors with memory of their own that operations of torch give.

    with TensorsMade() as made:
        work()
    made.largest  # numbers in the largest of them
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        self.shapes += [
            value.shape for value in tree_leaves(result) if isinstance(value, Tensor) and _storage(value) not in given
        ]
        return result

    @property
    def largest(self) -> int:
        """Numbers in the largest of them."""
        return max((shape.numel() for shape in self.shapes), default=0)


class LiveBytes(TorchDispatchMode):
    """While it is entered, how much memory the tensors take that operations of torch give and that somebody holds.

    with LiveBytes() as live:
        work()
    live.peak  # bytes
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: Counter[int] = Counter()  # tensors of each storage
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and (self.held[_storage(value)] or _storage(value) not in given):
                self._hold(value)
        return result

    def _hold(self, value: Tensor) -> None:
        storage, size = _storage(value), value.untyped_storage().nbytes()
        if not self.held[storage]:
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
        self.held[storage] += 1
        weakref.finalize(value, self._release, storage, size)

    def _release(self, storage: int, size: int) -> None:
        self.held[storage] -= 1
        if not self.held[storage]:
            self.bytes -= size


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def watching(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that counts or fails, and passes for one of the library's own: those of others make it run prompts whole.

    Arguments:
        hook: what is to be called.
    """

    def watch(*args: Any) -> Any:
        return hook(*args)

    watch.__module__ = "interp"
    return watch


def one_each(positions: Sequence[int]) -> list[list[int]]:
    """`target_positions` where each prompt has one token of its own."""
    return [[at] for at in positions]

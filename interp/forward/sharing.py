"""Attention functions that look at a prefix which many rows share, or at prompts that stand in one row.

Families that look their attention function up with transformers' `AttentionInterface` are handed ours while rows walk
or go on from a prefix (`interp.forward.cascade`), or where prompts are packed (`interp.forward.packing`). Other
families are given the keys of the prefix repeated (`interp.forward.prefix`), and prompts side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from interp.forward.cascade import Shared, attend_to
from interp.forward.packing import Packed

__all__ = ["hold", "sharing"]


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
        function = base if held is None else partial(attend_to, held)
        if _walking.packed is None:
            return function(module, query, key, value, *args, **kwargs)
        return _walking.packed.through(function, module, query, key, value, *args, **kwargs)

    return attend

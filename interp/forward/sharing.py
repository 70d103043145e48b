"""Attention functions that look at a prefix which many rows share, or at prompts that stand in one row.

Families that look their attention function up with transformers' `AttentionInterface` are handed ours while rows walk
or go on from a prefix (`interp.forward.cascade`), or where prompts are packed (`interp.forward.packing`): in the passes
of one model, in one thread (`interp.attention.switch`). Other families are given the keys of the prefix repeated
(`interp.forward.prefix`), and prompts side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from interp.attention.switch import switch_off, switch_on
from interp.forward.cascade import Shared, attend_to
from interp.forward.packing import Packed

__all__ = ["hold", "sharing"]


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

"""Replaces transformers' attention function, for some modules and one thread. Nothing else does.

A family's attention looks its function up with `AttentionInterface.get_interface`. While anything is switched, in any
thread, that is ours; what it gives goes through the handlers that this thread has switched on for the module that
calls it, and is for any other module, or thread, the function that was asked for. Afterwards transformers is as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.passes import SendableLock

__all__ = ["Attention", "Handler", "Switched", "switch_off", "switch_on"]

Attention = Callable[..., Any]
Handler = Callable[..., Any]
"""(the function that was asked for, the family's eager one, module, *args, **kwargs) -> what attention gives."""


@dataclass(frozen=True, eq=False)
class Switched:
    """A handler, for some modules.

    Arguments:
        modules: those whose attention goes through it.
        handler: what is called in place of their function.
    """

    modules: Container[nn.Module]
    handler: Handler


class _Here(threading.local):
    """What this thread has switched on, in this order: what comes later goes on to what came before."""

    def __init__(self) -> None:
        self.switched: list[Switched] = []
        self.asked = False  # ours has been called

    def __reduce__(self) -> tuple[type[_Here], tuple[()]]:  # functions are sent to a server with what they name
        return _Here, ()


class _Installed:
    """How much is switched on, in all threads; what transformers had before, while ours is there.

    Sent to a server, it is another: so nothing that it is made of names it.
    """

    def __init__(self) -> None:
        self.lock = SendableLock()
        self.count = 0
        self.before: Callable[..., Any] | None = None

    def __reduce__(self) -> tuple[type[_Installed], tuple[()]]:
        return _Installed, ()


_here = _Here()
_installed = _Installed()


def switch_on(modules: Container[nn.Module], handler: Handler) -> Switched:
    """Route the attention of some modules through a handler, in this thread, until `switch_off`.

    Arguments:
        modules: the modules that call attention functions.
        handler: given the function and what it is called with.
    """
    switched = Switched(modules, handler)
    with _installed.lock:
        _installed.count += 1
        if not _is_reached():
            _installed.before = AttentionInterface.get_interface
            AttentionInterface.get_interface = _get_interface
    _here.switched.append(switched)
    return switched


def switch_off(switched: Switched) -> None:
    """Undo `switch_on`, in the same thread; once."""
    _here.switched.remove(switched)
    with _installed.lock:
        _installed.count -= 1
        if not _installed.count and AttentionInterface.get_interface is _get_interface:
            AttentionInterface.get_interface, _installed.before = _installed.before, None


def _is_reached() -> bool:
    """Whether transformers asks ours.

    Another library may put a function of its own over ours while ours is there, and take it away whenever it likes.
    Then ours stays below it and lets everything through, and whether it is still there is found out by a call.
    """
    if _installed.before is None:
        return False
    _here.asked = False
    ALL_ATTENTION_FUNCTIONS.get_interface("eager", _nothing)
    return _here.asked


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _get_interface(self: AttentionInterface, attn_implementation: str, default: Attention) -> Attention:
    _here.asked = True
    found = _installed.before
    if found is None:  # the last one has just been switched off, in another thread
        return AttentionInterface.get_interface(self, attn_implementation, default)
    base: Attention = found(self, attn_implementation, default)
    if not _here.switched:
        return base

    def attend(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        handlers = [switched.handler for switched in _here.switched if module in switched.modules]
        if not handlers:
            return base(module, *args, **kwargs)  # by this call nnsight's `source` finds the function
        return _through(handlers, base, default)(module, *args, **kwargs)

    return attend


def _through(handlers: list[Handler], function: Attention, eager: Attention) -> Attention:
    for handler in handlers:
        same = function is eager
        function = partial(handler, function, eager)
        eager = function if same else partial(handler, eager, eager)
    return function

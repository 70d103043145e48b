"""Keeps what is switched on for a forward pass to that pass, and to the thread that it runs in.

A trace, hooks that stand for a while, and what transformers is made to look up are all seen by the thread that asked
for them, and by no other: several models run in several threads as each does alone. One model runs in one thread at a
time, since some modules keep state between calls (rotations that remember a length, caches of their own); other threads
wait for their turn.
"""

from __future__ import annotations

import threading
import weakref
from bisect import insort
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from nnsight.intervention import backward
from nnsight.intervention.interleaver import Interleaver
from nnsight.intervention.source import STATE
from torch import nn
from torch.utils.hooks import RemovableHandle

from interp.errors import InterpError

__all__ = [
    "SendableLock",
    "ThreadInterleaver",
    "after",
    "before",
    "check_gradients",
    "check_not_open",
    "in_turn",
    "is_open",
    "turn",
]

Given = ParamSpec("Given")
Result = TypeVar("Result")


class ThreadInterleaver(threading.local, Interleaver):
    """nnsight's interleaver with a state for each thread: whether a trace is open, its workers, what they wait for.

    nnsight's own has one for all, so that a trace in one thread would be handed what the model computes in another.

    Arguments:
        envoys: nnsight's table of the tree, which threads share.
        fragments: how values are put together that lie on several devices.
    """

    def __init__(self, envoys: Any, fragments: Any = None) -> None:
        Interleaver.__init__(self, fragments=fragments)  # for each thread that uses it
        self.envoys = envoys
        self._waiting: dict[str, list[tuple[int, Any]]] | None = None  # location -> workers, in order
        self._served: list[tuple[int, Any]] = []
        self.parked: Any = set()  # the locations

    # nnsight looks at all workers wherever one is served. Hundreds that each wait for one place are found by the place.

    def reindex(self) -> None:
        """Index what workers wait for, where none can move another (`waits_alone`)."""
        alone = all(getattr(mediator, "waits_alone", False) for mediator in self.mediators)
        self._waiting, self._served = ({}, list(enumerate(self.mediators))) if alone else (None, [])
        super().reindex()

    def cancel(self) -> None:
        """Let go of the workers, which hold the model."""
        super().cancel()
        self._waiting, self._served, self.parked = None, [], set()

    def _reindex_parked(self) -> None:
        if self._waiting is None:
            super()._reindex_parked()
            return
        for worker in self._served:
            pending = worker[1].pending
            if pending is not None:
                insort(self._waiting.setdefault(pending.provider, []), worker, key=_number)
        self._served = []
        self.parked = self._waiting.keys()

    def _ready(self, provider: str) -> list[Any]:
        if self._waiting is None:
            return super()._ready(provider)
        here = self._waiting.pop(provider, [])
        ready = [worker for worker in here if worker[1].pending.iteration == worker[1].occurrence(provider)]
        later = [worker for worker in here if worker not in ready]
        if later:
            self._waiting[provider] = later
        self._served += ready
        return [mediator for _, mediator in ready]

    @classmethod
    def new(cls, fragments: Any = None) -> ThreadInterleaver:
        """One for a model that is wrapped now."""
        return cls(weakref.WeakValueDictionary(), fragments)

    def __reduce__(self) -> tuple[Any, ...]:  # of a copied model, in which no trace is open
        return type(self), (self.envoys, self.fragments)


def _number(worker: tuple[int, Any]) -> int:
    return worker[0]


class SendableLock:
    """A lock that can be sent to a server, which makes one of its own: functions are sent with what they name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[SendableLock], tuple[()]]:
        return SendableLock, ()


def is_open(model: Any) -> bool:
    """Whether a trace runs in this thread that what a model computes now would belong to.

    Arguments:
        model: the model, nnsight's envoy of it. Another envoy may have been put around the same module.
    """
    state = model._module.__dict__.get(STATE)
    return model.interleaver.interleaving or (state is not None and state.active()[0] is not None)


def check_not_open(model: Any) -> None:
    """Refuse to run a model within a trace of it.

    Raises:
        InterpError: one is open in this thread.
    """
    if is_open(model):
        raise InterpError(
            f"a trace of {type(model._module).__name__} is open, and what is called in it runs the model by itself. "
            "Call it before or after the trace."
        )


def check_gradients(what: str) -> None:
    """Refuse gradients where torch keeps none.

    Arguments:
        what: what asks for them, for the message.

    Raises:
        InterpError: it is called in `torch.inference_mode`.
    """
    if torch.is_inference_mode_enabled():
        raise InterpError(f"{what}: torch.inference_mode keeps no gradients. Call it outside, or in torch.no_grad.")


# Hooks ----------------------------------------------------------------------------------------------------------------

_registering = SendableLock()  # torch numbers hooks by a counter that two threads may read at once


def before(
    module: nn.Module, hook: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any], *, prepend: bool = False
) -> RemovableHandle:
    """Call a hook before a module's forward pass, with keywords, in this thread alone.

    Arguments:
        module: the module.
        hook: (module, args, kwargs) -> None, or the new args and kwargs.
        prepend: whether it is called before the hooks that the module has.
    """
    thread = threading.get_ident()

    def here(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        # Without keywords: it was removed while the pass of another thread was on its way here.
        return hook(module, args, kwargs or {}) if threading.get_ident() == thread else None

    with _registering:
        return module.register_forward_pre_hook(here, with_kwargs=True, prepend=prepend)


def after(module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> RemovableHandle:
    """Call a hook after a module's forward pass, in this thread alone.

    Arguments:
        module: the module.
        hook: (module, args, output) -> None, or the new output.
    """
    thread = threading.get_ident()

    def here(module: nn.Module, args: Any, output: Any) -> Any:
        return hook(module, args, output) if threading.get_ident() == thread else None

    with _registering:
        return module.register_forward_hook(here)


# Turns ----------------------------------------------------------------------------------------------------------------


class _Turns:
    """Which thread runs which model, and which thread waits for which."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.held: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()  # thread, depth
        self.waiting: dict[int, nn.Module] = {}

    def __reduce__(self) -> tuple[type[_Turns], tuple[()]]:
        return _Turns, ()

    def take(self, module: nn.Module) -> None:
        thread = threading.get_ident()
        with self.changed:
            while self.held.get(module, (thread, 0))[0] != thread:
                self._check_ends(module, thread)
                self.waiting[thread] = module
                self.changed.notify_all()
                try:
                    self.changed.wait()
                finally:
                    del self.waiting[thread]
            self.held[module] = (thread, self.held.get(module, (thread, 0))[1] + 1)

    def give(self, module: nn.Module) -> None:
        with self.changed:
            thread, depth = self.held[module]
            if depth > 1:
                self.held[module] = (thread, depth - 1)
            else:
                del self.held[module]
                self.changed.notify_all()

    def _check_ends(self, module: nn.Module, thread: int) -> None:
        """Refuse to wait for a thread that waits, over others or not, for this one."""
        wanted: nn.Module | None = module
        while wanted is not None and wanted in self.held:
            owner = self.held[wanted][0]
            if owner == thread:
                raise InterpError(
                    f"{type(module).__name__} is in use by a thread that waits for a model which this thread uses: "
                    "both would wait for ever. Run one model after the other, or both in one thread."
                )
            wanted = self.waiting.get(owner)


_turns = _Turns()


class turn:
    """Context manager: no other thread's trace or lens runs the model meanwhile; it waits until none does.

    Arguments:
        module: the model, as transformers made it.

    Raises:
        InterpError: this would wait for a thread that waits for this one.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __enter__(self) -> None:
        _turns.take(self._module)

    def __exit__(self, *_: object) -> None:
        _turns.give(self._module)


def in_turn(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorate a function of a model: the whole call is one turn of that model."""

    @wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        model: Any = args[0] if args else kwargs["model"]
        with turn(model._module):
            return function(*args, **kwargs)

    return run


# Gradients ------------------------------------------------------------------------------------------------------------

_backward = nn.Identity()  # what a block of gradients takes a turn of
_plain_grad: Any = torch.Tensor.grad


class _BackwardInTurn(backward.BackwardTracer):
    """nnsight's `with loss.backward():`, for whose time it puts a property of its own over `torch.Tensor.grad`.

    Two at once would leave that of the one in place for the other, so they take turns; see `_grad_here`.
    """

    def execute(self, code: Any) -> None:
        with turn(_backward):
            super().execute(code)


def _grad_here(*given: Any) -> property:
    """nnsight's property for the thread that the block runs in; what other threads read is torch's own."""
    served, thread = _grad_property(*given), threading.get_ident()

    def read(tensor: torch.Tensor) -> Any:
        return (served if threading.get_ident() == thread else _plain_grad).__get__(tensor)

    def write(tensor: torch.Tensor, value: Any) -> None:
        (served if threading.get_ident() == thread else _plain_grad).__set__(tensor, value)

    return property(read, write, _plain_grad.__delete__)


_grad_property = backward._grad_property
backward._grad_property, backward.BackwardTracer = _grad_here, _BackwardInTurn

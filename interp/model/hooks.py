"""Finds the user's own forward hooks, which have to see each batch as plain transformers would give it.

A hook that adds a vector to `output[:, -1]` means the last token of each prompt. So it has to see prompts side by side,
whole and without padding behind them: not packed, not cut off, not continued from a shared prefix.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

__all__ = ["changes_output", "hooks_aside", "is_hooked", "users_hook"]

# Packages whose hooks change weights, devices and records, or know of the layout (our own), not tokens by their place.
_KNOWN = {"accelerate", "interp", "kernels", "nnsight", "peft", "torch", "transformers"}


def users_hook(module: nn.Module) -> str | None:
    """Find the first module that carries a hook of the user's, or a forward pass in place of its class's.

    Arguments:
        module: the model.

    Returns:
        What a message calls it; None where there is none.
    """
    if any(not _known(hook) for hooks in _global_hooks() for hook in hooks.values()):
        return "a forward hook on all modules"
    for part in module.modules():  # at every batch: paths are looked for where there is something to say
        if is_hooked(part):
            return f"a forward hook on {_path(module, part)}"
        if not _known(_forward(part)):
            return f"a forward pass of its own on {_path(module, part)}"
    return None


def _path(module: nn.Module, part: nn.Module) -> str:
    return next(path for path, other in module.named_modules() if other is part) or "the model"


def is_hooked(part: nn.Module) -> bool:
    """Whether a module itself carries a hook of the user's."""
    if not part._forward_pre_hooks and not part._forward_hooks:
        return False
    return any(not _known(hook) for hooks in _hooks(part) for hook in hooks.values())


def changes_output(part: nn.Module) -> bool:
    """Whether the user's hooks run after a module's forward pass, and so may change its output."""
    return any(not _known(hook) for hooks in (part._forward_hooks, _global_hooks()[1]) for hook in hooks.values())


@contextmanager
def hooks_aside(module: nn.Module) -> Iterator[None]:
    """Context manager: the user's hooks do not run, for a pass that only tests the model.

    Arguments:
        module: the model.
    """
    everywhere = [*_global_hooks(), *(hooks for part in module.modules() for hooks in _hooks(part))]
    held = [(hooks, dict(hooks)) for hooks in everywhere if any(not _known(hook) for hook in hooks.values())]
    for hooks, all_of_them in held:
        for key, hook in all_of_them.items():
            if not _known(hook):
                del hooks[key]
    try:
        yield
    finally:
        for hooks, all_of_them in held:  # in their order
            hooks.clear()
            hooks.update(all_of_them)


def _hooks(part: nn.Module) -> tuple[MutableMapping[int, Any], ...]:
    return part._forward_pre_hooks, part._forward_hooks


def _global_hooks() -> tuple[MutableMapping[int, Any], ...]:
    return torch_module._global_forward_pre_hooks, torch_module._global_forward_hooks


def _forward(part: nn.Module) -> Any:
    """What a module runs: its class's forward pass, or what was put in its place on this one module."""
    forward = part.__dict__.get("forward")
    if forward is None:
        return None
    if type(forward).__module__.startswith("nnsight."):
        forward = forward.state.original  # what nnsight has put itself before
        if forward is type(part).forward:
            return None
        if getattr(forward, "__closure__", None):  # a function of nnsight's, around one that is no method
            forward = inspect.getclosurevars(forward).nonlocals.get("forward", forward)
    is_its_class_s = getattr(forward, "__func__", forward) is type(part).forward
    return None if is_its_class_s else forward


def _known(hook: Any) -> bool:
    """Whether a hook, or a forward pass put in place of another (None: of none), is of a package that is known."""
    while isinstance(hook, partial):
        hook = hook.func
    return hook is None or str(getattr(hook, "__module__", "")).split(".")[0] in _KNOWN

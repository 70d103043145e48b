"""Intercepts a model's attention function during a trace that reads or writes q, k, v, scores or pattern.

While a module is watched, what its attention is given in place of its function (`interp.attention.switch`) serves the
points and goes on to the one that it asked for. The name of the
implementation in the config stays what it was: masks are made by it, and several families (DeepSeek V3.2, GLM with
sparse attention, MiniMax M3) choose by it whether to attend sparsely.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from interp.attention.points import Points
from interp.attention.switch import Attention, Switched, switch_on
from interp.errors import InterpError

__all__ = ["IMPLEMENTATIONS", "SoftmaxPoints", "attends_twice", "hidden_score", "routing_module", "watch"]


# Those that can be followed: the others never form the pattern, nor a mask that it could be computed from.
IMPLEMENTATIONS = ("sdpa", "eager")

# Those that call the function twice in a forward pass, with the same queries and keys and with values of their own.
_ATTENDS_TWICE = ("DiffLlamaAttention",)


@dataclass
class _Watched:
    """A module whose points may be asked for.

    Arguments:
        points: where they are served.
        forward: the forward pass of the module, as nnsight counts them, in which it last called its function.
        first: what that call ended up with, by kind, where another one with the same queries and keys is to come.
    """

    points: Points
    forward: int = -1
    first: dict[str, Tensor] = field(default_factory=dict)


def routing_module(attention: nn.Module) -> str | None:
    """The path, within an attention module, of the module that calls the attention function; None: there is none."""
    return next((path for path, module in attention.named_modules() if _routes(type(module))), None)


def _routes(module_type: type[nn.Module]) -> bool:
    """Whether a class's forward pass, or one that it hands on to, looks the attention function up."""
    for owner in module_type.__mro__:
        forward = vars(owner).get("forward")
        if forward is None:
            continue
        code = getattr(inspect.unwrap(forward), "__code__", None)
        names = set() if code is None else set(code.co_names)
        if {"ALL_ATTENTION_FUNCTIONS", "get_interface"} <= names:
            return True
        if "super" not in names:
            return False
    return False


def attends_twice(module: nn.Module) -> bool:
    """Whether a module calls its attention function twice, on other values, so that `v` is two things."""
    return type(module).__name__ in _ATTENDS_TWICE


def watch(module: nn.Module, points: Points) -> Switched:
    """Serve the points of a module from its next call of its attention function on, in this thread.

    Arguments:
        module: the module that calls it.
        points: where its values are served.

    Returns:
        What is to be given to `interp.attention.switch.switch_off`.
    """
    watched = _Watched(points)

    def attend(base: Attention, eager: Attention, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not points.open():
            return base(module, *args, **kwargs)
        return _attend(watched, base, eager, module, *args, **kwargs)

    return switch_on((module,), attend)


def _attend(
    watched: _Watched,
    base: Attention,
    eager: Attention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with its points: q, k, v before the function that the model chose, the others inside eager's."""
    points = watched.points
    forward = points.interleaver.counts.get(f"{points.path}.output", 0)
    known = watched.first if forward == watched.forward else {}
    if forward == watched.forward and not known:
        raise InterpError(
            f"{points.path}: {type(module).__name__} calls its attention function twice in one forward pass, so q, k, "
            "v, scores and pattern of this layer are not one thing each."
        )
    watched.forward, watched.first = forward, {}
    if known:
        query, key = known["q"], known["k"]
    else:
        query, key, value = (points.serve(kind, x) for kind, x in (("q", query), ("k", key), ("v", value)))
    final = {"q": query, "k": key}
    if not (points.awaited("scores", "pattern") or "pattern" in known):
        output, weights = base(module, query, key, value, attention_mask, **kwargs)
    else:
        if base is not eager:
            attention_mask = _additive(attention_mask, module, query, key, kwargs.get("is_causal"))
        with SoftmaxPoints(points, key.shape[2], known) as softmax:
            output, weights = eager(module, query, key, value, attention_mask, **kwargs)
        if missing := {"scores", "pattern"} - softmax.values.keys():
            raise InterpError(
                f"{points.path}: {' and '.join(sorted(missing))} not available: {_called(eager)} "
                "does not take a softmax over the keys and multiply the values by it."
            )
        final |= softmax.values
        weights = weights if base is eager else None
    if not known and attends_twice(module):
        watched.first = final
    return output, weights


def _called(function: Attention) -> str:
    while isinstance(function, partial):  # another handler stands before it
        function = function.args[0]
    return f"{function.__module__}.{function.__qualname__}"


def _additive(mask: Tensor | None, module: nn.Module, query: Tensor, key: Tensor, is_causal: bool | None) -> Tensor:
    """The mask that eager attention adds to the scores, from the one that `sdpa` was given (none may mean causal)."""
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device)
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if causal and queries > 1:
            mask = mask.tril()
    if mask.dtype != torch.bool:
        return mask
    zero = torch.zeros((), dtype=query.dtype, device=mask.device)
    return torch.where(mask, zero, hidden_score(query.dtype))


def hidden_score(dtype: torch.dtype) -> float:
    """The score of a key that is hidden; of float64 float32's, in which families take the softmax.

    In float32 the least float64 is minus infinity, and a row of padding, which sees nothing, would have NaN.
    """
    return max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)


_SOFTMAX = {functional.softmax, torch.softmax, Tensor.softmax}
# What takes the scores before softmax does: a sink is joined to them (GPT-OSS) or weighed against their sum (Granite).
_BEFORE_SOFTMAX = {torch.cat, torch.logsumexp}
# What takes the pattern, already in its final dtype: dropout, or where a family has none the product with the values.
_AFTER_SOFTMAX = {functional.dropout, torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}


class SoftmaxPoints(TorchFunctionMode):
    """Serves `scores` and `pattern` from within the function that computes them.

    The function itself is not touched, so an edit flows through its own softcap, sinks and casts. Torch takes a mode
    off its stack while the mode handles a call, and the body of the trace runs within such a call; where it does not (a
    submodule that the function calls), it runs in another greenlet, whose calls are let through.

    Arguments:
        points: where the values are served.
        keys: the number of keys, by which the scores are known.
        known: kind -> the value that an earlier call with the same queries and keys ended up with, which is put in
            place of serving it again.
    """

    def __init__(self, points: Points, keys: int, known: Mapping[str, Tensor]) -> None:
        TorchFunctionMode.__init__(self)
        self._points = points
        self._keys = keys
        self._known = known
        self._greenlet = getcurrent()
        self._replaced: Tensor | None = None
        self._seen_softmax = False
        self.values: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getcurrent() is not self._greenlet:
            return func(*args, **kwargs)
        if not self._seen_softmax and (func in _SOFTMAX or func in _BEFORE_SOFTMAX):
            args, kwargs = self._with_scores(args, kwargs)
            result = func(*args, **kwargs)
            self._seen_softmax = func in _SOFTMAX
            return result
        if self._seen_softmax and "pattern" not in self.values and func in _AFTER_SOFTMAX:
            pattern = _first(args, kwargs)
            if pattern.shape[-1] == self._keys:  # where not, a sink has still to be dropped
                args, kwargs = _replace_first(args, kwargs, self._serve("pattern", pattern))
        return func(*args, **kwargs)

    def _with_scores(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        first = _first(args, kwargs)
        joined = not isinstance(first, Tensor)  # torch.cat takes a sequence
        scores = first[0] if joined else first
        if scores.shape[-1] != self._keys or (joined and first[-1].shape[-1] != 1):
            return args, kwargs  # not the scores, or no longer: a sink has been joined to them
        if "scores" not in self.values:
            self._replaced = scores
            self._serve("scores", scores)
        elif scores is not self._replaced:
            return args, kwargs
        new = self.values["scores"]
        return _replace_first(args, kwargs, [new, *first[1:]] if joined else new)

    def _serve(self, kind: str, value: Tensor) -> Tensor:
        known = self._known.get(kind)
        self.values[kind] = self._points.serve(kind, value) if known is None else known
        return self.values[kind]


def _first(args: Any, kwargs: Any) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _replace_first(args: Any, kwargs: Any, value: Any) -> tuple[Any, Any]:
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): value}

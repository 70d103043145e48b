"""Standing beside a family's own attention function: what goes into its softmax, and what multiplies the values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from greenlet import getcurrent  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from interp.attention.points import Points

__all__ = ["SoftmaxPoints"]

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

"""`AttentionAccess`: q, k, v, scores and pattern by layer, for either kind of attention implementation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nnsight.intervention.interleaver import Mediator
from torch import Tensor, nn
from transformers import Cache

from interp.attention.interface import IMPLEMENTATIONS, attends_twice, routing_module, watch
from interp.attention.operations import OperationPoint, operations_of
from interp.attention.points import KINDS, Points, calls
from interp.attention.switch import Switched, switch_off
from interp.errors import InterpError, nearest

__all__ = ["AttentionAccess"]


class AttentionAccess:
    """Reads and writes q, k, v, scores and pattern of a model's layers, inside its traces.

    | kind | what it is | shape |
    |---|---|---|
    | `q` | queries as the attention function receives them, after rotary embeddings | batch, head, position, head_dim |
    | `k`, `v` | keys and values, with those of the cache | batch, kv head, key, head_dim |
    | `scores` | what softmax receives: scaled, capped, biased, masked; without sinks | batch, head, query, key |
    | `pattern` | what multiplies the values, before dropout; without sinks | batch, head, query, key |

    A layer must be asked in this order. It computes as it always does until `scores` or `pattern` is asked for; then,
    in that forward pass, by its family's eager attention, whatever the model was loaded with. Rows of padding attend to
    everything there, as they do in eager.

    What is read is the model's live tensor. With a cache, k and v are the cache's own: what changes them in place stays
    in the cache, what `write` puts in their place counts in this forward pass alone.
    """

    def __init__(
        self,
        envoys: Callable[[int], Any | None],
        model_type: str,
        *,
        pattern_source: Callable[[Any], Any] | None = None,
    ) -> None:
        """Nothing is switched on until a point is asked for.

        Arguments:
            envoys: layer -> nnsight's envoy of its attention module, or of one around it; None where it has none.
            model_type: of the model's (text) config.
            pattern_source: attention envoy -> the nnsight operation whose output is the pattern, for attention that
                Interpipe cannot follow; it counts before everything else.
        """
        self._envoys = envoys
        self._model_type = model_type
        self._pattern_source = pattern_source
        self._routes: dict[int, str | None] = {}
        self._trace = _Trace()

    def available(self, kind: str, layer: int) -> str | None:
        """Why a point is not available; None where it is.

        Arguments:
            kind: `q`, `k`, `v`, `scores` or `pattern`.
            layer: the layer, from 0.

        Raises:
            InterpError: an unknown kind.
        """
        if kind not in KINDS:
            raise InterpError(f"unknown point of attention {kind!r}.{nearest(kind, KINDS)}")
        envoy = self._envoys(layer)
        if envoy is None:
            return f"layer {layer} has no attention."
        if kind == "pattern" and self._pattern_source is not None:
            return None
        found = operations_of(self._model_type, envoy)
        if found is not None:
            _, operations, missing = found
            return None if kind in operations else missing
        route = self._route(layer, envoy)
        if route is None:
            return (
                f"{type(envoy._module).__name__} does not ask transformers' AttentionInterface for its attention "
                "function (get_interface). For the pattern, name the operation that gives it in "
                "RenameConfig(attn_prob_source=...)."
            )
        return _why_not(envoy._module.get_submodule(route), kind)

    def read(self, kind: str, layer: int) -> Tensor:
        """The value at a point, inside a trace.

        Arguments:
            kind: `q`, `k`, `v`, `scores` or `pattern`.
            layer: the layer, from 0.

        Returns:
            The model's live tensor, of the shape above.

        Raises:
            InterpError: it is not available; says why.
            ValueError: outside a trace (nnsight's).
        """
        return self._point(kind, layer).read()

    def write(self, kind: str, layer: int, value: Tensor) -> None:
        """Replace the value at a point, inside a trace.

        Arguments:
            kind: `q`, `k`, `v`, `scores` or `pattern`.
            layer: the layer, from 0.
            value: of the shape, dtype and device of what `read` gives.

        Raises:
            InterpError: it is not available; says why.
            ValueError: outside a trace (nnsight's).
        """
        self._point(kind, layer).write(value)

    def release(self) -> None:
        """Switch off what was asked for; to be called when a trace ends, however it ends, in its thread."""
        while self._trace.watched:
            switch_off(self._trace.watched.popitem()[1])
        self._trace.cached.clear()

    def _point(self, kind: str, layer: int) -> _InterfacePoint | OperationPoint | _SourcePoint:
        reason = self.available(kind, layer)
        if reason is not None:
            raise InterpError(f"{kind} of layer {layer} is not available: {reason}")
        envoy = self._envoys(layer)
        assert envoy is not None
        if kind == "pattern" and self._pattern_source is not None:
            return _SourcePoint(self._pattern_source(envoy))
        found = operations_of(self._model_type, envoy)
        if found is not None:
            inner, operations, _ = found
            operation = operations[kind]
            if any(other.uncached is not None for other in operations.values()) and not self._has_cache(inner):
                operation = operation.uncached or operation
            return OperationPoint(inner, operation)
        route = self._route(layer, envoy)
        routing = envoy.get(route) if route else envoy
        points = Points(routing.interleaver, routing.path)
        Mediator.current(points.location(kind))  # outside a trace: nnsight's error, before anything is switched on
        if routing._module not in self._trace.watched:
            self._trace.watched[routing._module] = watch(routing._module, points)
        return _InterfacePoint(points, kind)

    def _route(self, layer: int, envoy: Any) -> str | None:
        if layer not in self._routes:
            self._routes[layer] = routing_module(envoy._module)
        return self._routes[layer]

    def _has_cache(self, envoy: Any) -> bool:
        """Whether the forward pass of a module is given a cache."""
        mediator = Mediator.current(envoy.path)
        begun, ended = (calls(mediator, envoy.interleaver, f"{envoy.path}.{side}") for side in ("input", "output"))
        if begun == ended:
            args, kwargs = envoy.inputs
            self._trace.cached[envoy.path] = any(isinstance(given, Cache) for given in (*args, *kwargs.values()))
        if envoy.path not in self._trace.cached:
            raise InterpError(
                f"{envoy.path}: its forward pass has begun. Ask for its q, k, v, scores and pattern before anything "
                "else inside it."
            )
        return self._trace.cached[envoy.path]


def _why_not(module: Any, kind: str) -> str | None:
    implementation = module.config._attn_implementation or "eager"
    if implementation not in IMPLEMENTATIONS:
        return (
            f"the model was loaded with attn_implementation={implementation!r}, whose attention cannot be followed. "
            f"Load it with {' or '.join(repr(name) for name in IMPLEMENTATIONS)}."
        )
    if implementation == "eager" and getattr(module, "reorder_and_upcast_attn", False):
        return (
            "with reorder_and_upcast_attn, eager attention is a function of the model's own. Load it with "
            "attn_implementation='sdpa'."
        )
    if kind == "v" and attends_twice(module):
        return f"{type(module).__name__} attends twice with the same pattern, to values of their own."
    return None


class _Trace(threading.local):
    """What the trace of this thread has asked for.

    Arguments:
        watched: module -> what was switched on for it.
        cached: path of a module -> whether its forward pass is given a cache.
    """

    def __init__(self) -> None:
        self.watched: dict[nn.Module, Switched] = {}
        self.cached: dict[str, bool] = {}

    def __reduce__(self) -> tuple[type[_Trace], tuple[()]]:  # sent to a server with the model
        return _Trace, ()


@dataclass(frozen=True)
class _InterfacePoint:
    """A point that is served on the way to the attention function."""

    points: Points
    kind: str

    def read(self) -> Tensor:
        return self.points.read(self.kind)

    def write(self, value: Tensor) -> None:
        self.points.write(self.kind, value)


@dataclass(frozen=True)
class _SourcePoint:
    """The output of an operation that the user named."""

    node: Any

    def read(self) -> Tensor:
        return self.node.output

    def write(self, value: Tensor) -> None:
        self.node.output = value

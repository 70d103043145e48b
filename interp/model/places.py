"""Reads and writes one site inside a trace, wherever the family puts it.

A hidden state is a module's input or output, or the first item of what a module returns. Some families hand it to a
module flattened, (batch x position, hidden); it is given back its three axes here, whatever else runs in the batch.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from interp.errors import InterpError
from interp.tracing import check_not_passed

__all__ = [
    "AddedPlace",
    "AttentionPlace",
    "HeadOutPlace",
    "HeadPlace",
    "LogitsPlace",
    "ModulePlace",
    "Place",
    "TraceMemory",
    "ZPlace",
    "fitted",
    "norm_gain",
]


class Place(Protocol):
    """One value of a forward pass, inside a trace."""

    def read(self) -> Tensor:
        """The model's live tensor."""

    def write(self, value: Tensor) -> None:
        """Replace it; everything after it sees the new one."""


def fitted(value: Tensor, live: Tensor, name: str) -> Tensor:
    """Move a value to the device and dtype of what it replaces; refuse one of another shape."""
    if not isinstance(value, Tensor) or value.shape != live.shape:
        came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(type(value))
        raise InterpError(
            f"write {name}: expected a tensor of shape {tuple(live.shape)}, got {came}. To change a part, read the "
            "whole, change the part, and write the whole."
        )
    return value.to(device=live.device, dtype=live.dtype)


@dataclass(frozen=True)
class ModulePlace:
    """What a module takes or gives.

    Arguments:
        envoy: the module.
        side: `input` or `output`.
        name: what the user called the place, for messages.
        in_place: write into the tensor itself, because others hold on to it.
    """

    envoy: Any
    side: str
    name: str
    in_place: bool = False

    def read(self) -> Tensor:
        return self._hidden(self._live())

    def write(self, value: Tensor) -> None:
        check_not_passed(f"{self.envoy.path}.{self.side}", self.name)
        whole = self.envoy.input if self.side == "input" else self.envoy.output
        live = whole if isinstance(whole, Tensor) else whole[0]
        hidden = self._hidden(live)
        new = fitted(value, hidden, self.name)
        if self.in_place:
            hidden.copy_(new)
            return
        if hidden is not live:  # flattened: put the rows of this invoke back among all rows
            new = self._spread(live, new)
        if self.side == "input":
            self._replace_input(live, new)
        else:
            self.envoy.output = new if isinstance(whole, Tensor) else type(whole)((new, *whole[1:]))

    def _replace_input(self, live: Tensor, new: Tensor) -> None:
        """Replace a module's input wherever it is given it: CTRL's attention takes its own as values, keys, queries."""
        args, kwargs = self.envoy.inputs
        same = [_is_same(given, live) for given in args]
        if sum(same) < 2:
            self.envoy.input = new
        else:
            self.envoy.inputs = (tuple(new if is_it else x for is_it, x in zip(same, args, strict=True)), kwargs)

    def _live(self) -> Tensor:
        check_not_passed(f"{self.envoy.path}.{self.side}", self.name)
        value = self.envoy.input if self.side == "input" else self.envoy.output
        return value if isinstance(value, Tensor) else value[0]

    def _hidden(self, live: Tensor) -> Tensor:
        if live.dim() != 2:
            return live
        rows, length, first, count = self._fed(live)
        return live.view(rows, length, live.shape[1])[first : first + count]

    def _spread(self, live: Tensor, new: Tensor) -> Tensor:
        rows, length, first, count = self._fed(live)
        every = live.view(rows, length, live.shape[1])
        return torch.cat([every[:first], new, every[first + count :]]).reshape(live.shape)

    def _fed(self, live: Tensor) -> tuple[int, int, int, int]:
        """Of a flattened value: rows and positions; the first row, and the number of rows, of the invoke that asks.

        nnsight gives each invoke its rows by the first axis, which here is as long as the batch only where one token a
        row is fed, as in generation.
        """
        rows, length = self.envoy.root.fed.shape
        batcher = self.envoy.interleaver.batcher
        group = Mediator.current(self.name).batch_group
        if group is None or batcher is None or not batcher.batching or rows != batcher.total:
            return rows, length, 0, rows
        return (group[1], 1, 0, group[1]) if live.shape[0] == group[1] else (rows, length, *group)


def _is_same(given: Any, live: Tensor) -> bool:
    """The same numbers in the same memory; two views of one invoke's rows are different objects."""
    return isinstance(given, Tensor) and given.data_ptr() == live.data_ptr() and given.shape == live.shape


class TraceMemory(threading.local):
    """What the trace of this thread keeps."""

    def __init__(self) -> None:
        self.values: dict[Any, Tensor] = {}

    def __reduce__(self) -> tuple[type[TraceMemory], tuple[()]]:  # sent to a server with the model
        return TraceMemory, ()


@dataclass(frozen=True)
class AddedPlace:
    """What a sublayer adds to the residual stream: the sum of what modules give, times a scale.

    Arguments:
        places: the outputs that are added, in the order of the forward pass.
        scale: a number, or a vector over the hidden axis; None: 1.
        name: what the user called the place, for messages.
        memory: what the trace keeps; the first terms of a sum are gone when the last one is read and then written.
    """

    places: Sequence[ModulePlace]
    scale: float | Tensor | None
    name: str
    memory: TraceMemory

    def read(self) -> Tensor:
        value = self._first_terms()
        last = self.places[-1].read()
        value = last if value is None else value + last
        return value if self.scale is None else value * self.scale

    def write(self, value: Tensor) -> None:
        others = self._first_terms()
        new = fitted(value, self.places[-1].read(), self.name)
        if self.scale is not None:
            new = new / self.scale
        self.places[-1].write(new if others is None else new - others)

    def _first_terms(self) -> Tensor | None:
        """The sum of all terms but the last; None where there is one term."""
        if len(self.places) == 1:
            return None
        last = self.places[-1].envoy
        mediator = Mediator.current(self.name)
        visit = (id(mediator), last.path, mediator.occurrence(f"{last.path}.output"))
        known = self.memory.values
        if visit not in known:
            terms = [place.read() for place in self.places[:-1]]
            known[visit] = torch.stack(terms).sum(0) if len(terms) > 1 else terms[0].clone()
        return known[visit]


@dataclass(frozen=True)
class ZPlace:
    """What the output projection of attention receives, by heads: (batch, position, head, head_dim)."""

    projection: ModulePlace
    num_heads: int

    def read(self) -> Tensor:
        live = self.projection.read()
        return live.unflatten(-1, (self.num_heads, -1))

    def write(self, value: Tensor) -> None:
        live = self.read()
        self.projection.write(fitted(value, live, self.projection.name).flatten(-2))


@dataclass(frozen=True)
class HeadOutPlace:
    """What each head adds to the residual stream, (batch, position, head, hidden); with the bias the sum is `attn_out`.

    Arguments:
        z: the heads before the output projection.
        projection: the output projection, an envoy.
        norm: the norm between projection and residual stream, an envoy; None: there is none.
        added: `attn_out`.
    """

    z: ZPlace
    projection: Any
    norm: Any | None
    added: AddedPlace

    def read(self) -> Tensor:
        return self.heads(self.z.read())

    def read_bias(self) -> Tensor:
        """What attention adds when every head gives zero: the bias of its projection, on its way to the stream."""
        z = self.z.read().flatten(-2)
        return self._on_its_way(self.projection(torch.zeros_like(z)), z)

    def read_projected(self) -> Tensor:
        """What attention adds, computed from its heads together: `attn_out` once more."""
        z = self.z.read().flatten(-2)
        return self._on_its_way(self.projection(z), z)

    def write(self, value: Tensor) -> None:
        heads = self.heads(self.z.read())
        new = fitted(value, heads, self.z.projection.name)
        self.added.write(self.added.read() + (new - heads).sum(dim=-2))

    def heads(self, z: Tensor) -> Tensor:
        """Each head alone through the projection, minus the bias, and on to the residual stream."""
        heads, width = z.shape[-2:]
        apart = torch.eye(heads, dtype=z.dtype, device=z.device)[:, :, None] * z[:, :, None]  # b, p, head, head, width
        rows = apart.reshape(z.shape[0], -1, heads * width)  # as attention calls it: batch, position, width
        bias = self.projection(z.new_zeros(1, 1, heads * width))
        return self._on_its_way((self.projection(rows) - bias).unflatten(1, (-1, heads)), z.flatten(-2))

    def _on_its_way(self, projected: Tensor, z: Tensor) -> Tensor:
        """A part of what the projection gives, times what the norm behind it and the scale multiply the whole by."""
        if self.norm is not None:
            gain = norm_gain(self.norm, self.projection(z))  # (batch, position, hidden)
            projected = projected * (gain if projected.dim() == gain.dim() else gain[:, :, None])
        return projected if self.added.scale is None else projected * self.added.scale


def norm_gain(norm: Any, hidden: Tensor) -> Tensor:
    """What an RMS norm multiplies each number of `hidden` by: its weight times the reciprocal root mean square.

    The weight is what the norm does to a vector of ones, but for a factor; the factor is fitted to what it does to
    `hidden`. So no family's way of storing weight and epsilon need be known.
    """
    weight = norm(torch.ones_like(hidden)).double()
    normed, scaled = norm(hidden).double(), weight * hidden.double()
    size = (scaled * scaled).sum(-1, keepdim=True)  # zero where the weight is, or where the heads add nothing
    there = size > 0
    # Divided by 1 elsewhere: the gradient of 0 / 0 would be NaN, though what it gives is not taken.
    factor = torch.where(there, (normed * scaled).sum(-1, keepdim=True) / size.where(there, 1.0), 0.0)
    return (weight * factor).to(hidden.dtype)


@dataclass(frozen=True)
class AttentionPlace:
    """q, k, v, scores or pattern of a layer.

    Arguments:
        access: who reads and writes them (`interp.attention`).
        kind: which of them.
        layer: the layer.
        name: what the user called the place, for messages.
    """

    access: Any
    kind: str
    layer: int
    name: str

    def read(self) -> Tensor:
        return self.access.read(self.kind, self.layer)

    def write(self, value: Tensor) -> None:
        self.access.write(self.kind, self.layer, fitted(value, self.read(), self.name))


@dataclass(frozen=True)
class HeadPlace:
    """One head of a value that has a head axis.

    Arguments:
        whole: all heads.
        axis: the head axis.
        head: which one.
        name: what the user called the place, for messages.
    """

    whole: Place
    axis: int
    head: int
    name: str

    def read(self) -> Tensor:
        return self._head(self.whole.read())

    def write(self, value: Tensor) -> None:
        new = self.whole.read().clone()
        head = self._head(new)
        head.copy_(fitted(value, head, self.name))
        self.whole.write(new)

    def _head(self, whole: Tensor) -> Tensor:
        if self.head >= whole.shape[self.axis]:
            raise InterpError(f"{self.name}: this layer has {whole.shape[self.axis]} heads, from 0.")
        return whole.select(self.axis, self.head)


@dataclass(frozen=True)
class LogitsPlace:
    """The logits in what the model returns.

    Arguments:
        root: the model's envoy.
    """

    root: Any

    def read(self) -> Tensor:
        return self.root.output.logits

    def write(self, value: Tensor) -> None:
        output = self.root.output
        self.root.output = type(output)(**{**output, "logits": fitted(value, output.logits, "logits")})

"""Places further inside a sublayer: parts of a norm, of what a projection gives, of what attention is handed.

They are no sites: what they hold is not the same thing in every family. Interfaces that name them build on these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.errors import InterpError
from interp.model.places import ModulePlace, Place, TraceMemory, fitted

__all__ = [
    "HeadInputsPlace",
    "NewTokensPlace",
    "NormPart",
    "NormPlace",
    "ProjectedPlace",
    "ProjectionInputPlace",
    "RowsPlace",
    "TransposedPlace",
    "norm_kind",
    "norm_weights",
    "normalized",
]

NormPart = Literal["scale", "normalized"]


def norm_kind(norm: nn.Module, width: int, *, device: torch.device, dtype: torch.dtype) -> tuple[bool, float] | None:
    """How a norm normalizes: whether it subtracts the mean, and its epsilon. None: it is no norm of either kind.

    Arguments:
        norm: the module, which is called.
        width: of the vectors that it takes.
        device, dtype: of these.
    """
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 2, width, generator=generator, dtype=torch.float32, device="cpu").to(device, dtype)
    own = [eps for name in ("eps", "variance_epsilon") if isinstance(eps := getattr(norm, name, None), float)]
    try:
        return _kind_of(norm, sample, own)
    except (RuntimeError, TypeError):  # it wants vectors of another form
        return None


@torch.no_grad()
def _kind_of(norm: nn.Module, sample: Tensor, own: list[float]) -> tuple[bool, float] | None:
    """The same, by what it makes of (1, position, width)."""
    dtype, small = sample.dtype, 0.01 * sample  # beside which an epsilon shows
    tolerance = 1e-3 if dtype == torch.float32 else 0.05
    given, shrunk, bias = norm(sample).float(), norm(small).float(), norm(torch.zeros_like(sample)).float()
    centred = bool(torch.allclose(given, norm(sample + 3.0).float(), rtol=0.05, atol=0.05))
    signs = _signs(sample)
    for eps in own or (1e-5, 1e-6, torch.finfo(dtype).eps):
        weight = (norm(signs).float() - bias[:, :1]) / normalized(signs.float(), centred, eps)[1]
        if weight.numel() != sample.shape[-1]:  # a norm of several heads, each with its weight
            return None
        again = [normalized(x.float(), centred, eps)[1] * weight + bias for x in (sample, small)]
        if all(
            torch.allclose(one, other, rtol=tolerance, atol=tolerance)
            for one, other in zip(again, (given, shrunk), strict=True)
        ):
            return centred, eps
    return None


def norm_weights(norm: Any, centred: bool, eps: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """What a norm multiplies by and what it adds, (width,), in float32 at least; how a family stores them is not asked.

    Arguments:
        norm: the module, or its envoy, which is called.
        centred, eps: as `norm_kind` found them.
        like: (..., width), of the device and dtype that it takes.
    """
    with torch.no_grad():
        signs = _signs(like.reshape(1, -1, like.shape[-1]))
        bias = norm(torch.zeros_like(signs))
        scale, plain = normalized(signs, centred, eps)
        weight = (norm(signs) - bias).to(scale.dtype) / plain
    return weight.reshape(-1), bias.to(scale.dtype).reshape(-1)


def _signs(like: Tensor) -> Tensor:
    """+1 and -1 in turn: no component is small, whether or not the mean is subtracted."""
    signs = torch.ones_like(like[:1, :1])
    signs[..., 1::2] = -1
    return signs


def normalized(hidden: Tensor, centred: bool, eps: float) -> tuple[Tensor, Tensor]:
    """What a norm divides by, (..., 1), and what it makes of a vector before weight and bias, in float32 at least.

    Arguments:
        hidden: (..., width), what it receives.
        centred: it subtracts the mean.
        eps: what is added to the mean square.
    """
    centre = _centre(hidden, centred)
    scale = (centre.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return scale, centre / scale


def _centre(hidden: Tensor, centred: bool) -> Tensor:
    if hidden.dtype not in (torch.float32, torch.float64):
        hidden = hidden.float()
    return hidden - hidden.mean(-1, keepdim=True) if centred else hidden


@dataclass(frozen=True)
class NormPlace:
    """What a norm divides by, (..., 1), or what it has made of its input before weight and bias, (..., width).

    Written, it changes what the norm gives by as much as the change amounts to behind weight and bias, so that what is
    written back unchanged leaves the model as it is. What is read as `normalized` has the changed scale.

    Arguments:
        envoy: the norm.
        part: `scale` or `normalized`.
        centred, eps: as `norm_kind` found them.
        name: what the user called the place, for messages.
        memory: what the trace keeps: of a scale that was written, what it makes of the norm's input.
    """

    envoy: Any
    part: NormPart
    centred: bool
    eps: float
    name: str
    memory: TraceMemory

    def read(self) -> Tensor:
        _, scale, current = self._now()
        return scale if self.part == "scale" else current

    def write(self, value: Tensor) -> None:
        centre, scale, before = self._now()
        new = fitted(value, scale if self.part == "scale" else before, self.name)
        after = centre / new if self.part == "scale" else new
        self.memory.values[self._visit()] = after
        output = ModulePlace(self.envoy, "output", self.name)
        live = output.read()
        weight, _ = norm_weights(self.envoy, self.centred, self.eps, live.detach())
        output.write(live + ((after - before) * weight).to(live.dtype))

    def _now(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input less its mean, scale, and normalized value, while the norm's input is served."""
        hidden = ModulePlace(self.envoy, "input", self.name).read()
        scale, plain = normalized(hidden, self.centred, self.eps)
        return _centre(hidden, self.centred), scale, self.memory.values.get(self._visit(), plain)

    def _visit(self) -> tuple[Any, ...]:
        location = f"{self.envoy.path}.input"
        return ("norm", self.envoy.path, self.envoy.interleaver.counts.get(location, 0))


@dataclass(frozen=True)
class ProjectedPlace:
    """Some of what a projection gives: all of it, or columns of a fused one; by heads where it has them.

    Arguments:
        projection: the projection's output.
        columns: which numbers of its last axis; None: all.
        heads: (batch, position, heads, width) where given; None: (batch, position, width).
    """

    projection: ModulePlace
    columns: Tensor | None = None
    heads: int | None = None

    def read(self) -> Tensor:
        live = self.projection.read()
        part = live if self.columns is None else live[..., self.columns.to(live.device)]
        return part if self.heads is None else part.unflatten(-1, (self.heads, -1))

    def write(self, value: Tensor) -> None:
        live = self.projection.read()
        new = fitted(value, self.read(), self.projection.name)
        if self.heads is not None:
            new = new.flatten(-2)
        if self.columns is not None:
            whole = live.clone()
            whole[..., self.columns.to(live.device)] = new
            new = whole
        self.projection.write(new)


@dataclass(frozen=True)
class ProjectionInputPlace:
    """What a fused projection receives, for some of what it gives: written, only these change.

    Arguments:
        given: the projection's input.
        columns: which numbers of its last axis.
    """

    given: ModulePlace
    columns: Tensor

    def read(self) -> Tensor:
        return self.given.read()

    def write(self, value: Tensor) -> None:
        envoy, given = self.given.envoy, self.read()
        change = envoy(fitted(value, given, self.given.name)) - envoy(given)
        output = ProjectedPlace(ModulePlace(envoy, "output", self.given.name), self.columns)
        output.write(output.read() + change[..., self.columns.to(change.device)])


@dataclass(frozen=True)
class HeadInputsPlace:
    """The residual stream as each head receives it, a copy a head: (batch, position, head, hidden).

    Written, what the projections give changes by what each head's own copy changes, through the norm before them.

    Arguments:
        given: what the norm receives, or the projections where there is no norm.
        norm: the norm before the projections, an envoy; None: there is none.
        projections: queries, keys or values, or several of these.
        heads: how many copies.
    """

    given: ModulePlace
    norm: Any | None
    projections: tuple[ProjectedPlace, ...]
    heads: int

    def read(self) -> Tensor:
        return self.given.read()[:, :, None].expand(-1, -1, self.heads, -1)

    def write(self, value: Tensor) -> None:
        if any(projection.heads != self.heads for projection in self.projections):
            raise InterpError(
                f"{self.given.name}: keys and values are shared by several heads here, each of which would have a copy "
                "of its own. Write the copies of queries, keys and values apart."
            )
        given = self.given.read()
        copies = fitted(value, self.read(), self.given.name)
        if self.norm is not None:
            given, copies = self.norm(given), self.norm(copies)
        changes = []
        for projection in self.projections:
            map_, columns = projection.projection.envoy, projection.columns
            before, after = map_(given), map_(copies)  # after: of every head, from every head's copy
            if columns is not None:
                columns = columns.to(after.device)
                before, after = before[..., columns], after[..., columns]
            apart = after.unflatten(-1, (self.heads, -1))  # batch, position, head's copy, head, width
            own = apart.diagonal(dim1=2, dim2=3).transpose(-1, -2)
            changes.append(own - before.unflatten(-1, (self.heads, -1)))
        for projection, change in zip(self.projections, changes, strict=True):
            projection.write(projection.read() + change)


@dataclass(frozen=True)
class NewTokensPlace:
    """What attention is handed of the tokens that are fed, without those of a cache: (batch, position, head, width).

    Arguments:
        whole: q, k or v as attention receives them, (batch, head, key, width).
        fed: says how many tokens are fed.
        name: what the user called the place, for messages.
    """

    whole: Place
    fed: Any
    name: str

    def read(self) -> Tensor:
        return self._own(self.whole.read()).transpose(1, 2)

    def write(self, value: Tensor) -> None:
        whole = self.whole.read().clone()
        own = self._own(whole)
        own.copy_(fitted(value, own.transpose(1, 2), self.name).transpose(1, 2))
        self.whole.write(whole)

    def _own(self, whole: Tensor) -> Tensor:
        return whole[:, :, whole.shape[2] - self.fed.shape[1] :]


@dataclass(frozen=True)
class RowsPlace:
    """What a module takes or gives as it is, token ids among it; one row for all is shown as a row each.

    Arguments:
        envoy: the module.
        side: `input` or `output`.
        fed: says how many rows are fed.
        name: what the user called the place, for messages.
    """

    envoy: Any
    side: str
    fed: Any
    name: str

    def read(self) -> Tensor:
        live = self.envoy.input if self.side == "input" else self.envoy.output
        rows = self.fed.shape[0]
        return live.expand(rows, *live.shape[1:]) if live.shape[0] == 1 else live

    def write(self, value: Tensor) -> None:
        new = fitted(value, self.read(), self.name)
        if self.side == "input":
            self.envoy.input = new
        else:
            self.envoy.output = new


@dataclass(frozen=True)
class TransposedPlace:
    """A place whose second and third axes are shown in the other order: (batch, head, position, width).

    Arguments:
        whole: (batch, position, head, width).
    """

    whole: Place

    def read(self) -> Tensor:
        return self.whole.read().transpose(1, 2)

    def write(self, value: Tensor) -> None:
        self.whole.write(value.transpose(1, 2))

"""From a part of the residual stream to what it adds to logits: a linear map, once the final norm's scale is held.

residual stream = sum of parts x what later layers scale them by        `residual_scales`
norm(x) = gain * x + bias, the gain that of the whole sum               `FrozenNorm`
logit = x @ row of the head + bias                                      `HeadRows`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp.architectures import Sublayer
from interp.errors import InterpError
from interp.readout.groups import TokenGroups
from interp.readout.reduce import logits_of
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["FrozenNorm", "HeadRows", "Scale", "mean_logits", "residual_scales", "scaled", "tail_at"]

Scale = float | Tensor


def residual_scales(model: StandardizedTransformer, layer: int | None = None) -> dict[tuple[int, str], Scale]:
    """What later layers multiply each part with, where they scale the residual stream itself.

    Arguments:
        model: the model.
        layer: up to what enters this layer; None: up to what the last one gives.

    Returns:
        By layer and role (`attention`, `mixer`, `mlp`), and for `(-1, "embed")`, what enters layer 0.

    Raises:
        InterpError: a norm that the whole sum goes through: the last residual stream is no sum of the parts.
    """
    stages: list[list[tuple[tuple[int, str], Sublayer]]] = []
    for index in range(model.num_layers if layer is None else layer):
        module = model.layer(index)._module
        named = [((index, role), part) for role, part in model.architecture.sublayers(module)]
        for (_, role), part in named:
            norm = part.norm_after or part.residual_norm
            if norm is not None:
                raise InterpError(
                    f"direct logit attribution: in {type(model._module).__name__} the residual stream itself goes "
                    f"through a norm ({norm} at {role} of layer {index}), so the last one is no sum of what the parts "
                    "add, and contributions to logits are not defined. `logit_lens` reads each by itself."
                )
        if model.has(Site("resid_mid", index)):
            stages.append([each for each in named if each[0][1] != "mlp"])
            stages.append([each for each in named if each[0][1] == "mlp"])
        else:
            stages.append(named)
    scales: dict[tuple[int, str], Scale] = {}
    later: Scale = 1.0
    for stage in reversed(stages):
        scales |= {key: later for key, _ in stage}
        (index, _), first = stage[0]
        if first.residual_scale is not None:
            later = later * getattr(model.layer(index)._module, first.residual_scale)
    return {**scales, (-1, "embed"): later}


def scaled(part: Tensor, scale: Scale) -> Tensor:
    """A part of the residual stream, times such a scale."""
    return part * (scale.to(part) if isinstance(scale, Tensor) else scale)


def tail_at(model: StandardizedTransformer, hidden: Tensor, groups: TokenGroups) -> tuple[FrozenNorm, HeadRows]:
    """The final norm at residual streams, and the rows of the head for groups of tokens.

    Arguments:
        model: the model.
        hidden: (row, hidden), its last residual streams.
        groups: the groups of each row.
    """
    norm = None if model.tail.norm is None else model._module.get_submodule(model.tail.norm)
    return FrozenNorm.at(norm, model.tail_input(hidden)), HeadRows.of(model, groups)


def mean_logits(model: StandardizedTransformer, hidden: Tensor, groups: TokenGroups) -> Tensor:
    """(cell, group), the mean over a group's tokens of the model's own logits before the softcap."""
    members = logits_of(model, hidden, groups.ids.flatten(1), softcap=False).view(groups.ids.shape)
    groups = groups.to(members.device)
    members = members * groups.valid
    return members.sum(-1) / groups.valid.sum(-1)


@dataclass(frozen=True)
class FrozenNorm:
    """norm(x) = gain * (x, centred or not) + bias, with the gain that the norm has at given residual streams.

    How a family stores weight and epsilon need not be known: the norm is asked for what it does to zeros, ones, an
    alternating vector and the residual streams, and is refused where it is no such norm.

    Arguments:
        gain: (row, hidden) float32.
        bias: (hidden,) float32.
        centred: the mean over the hidden axis is taken away first (layer norm).
    """

    gain: Tensor
    bias: Tensor
    centred: bool

    @classmethod
    def at(cls, norm: nn.Module | None, hidden: Tensor) -> FrozenNorm:
        """The norm at residual streams.

        Arguments:
            norm: the final norm; None: there is none.
            hidden: (row, hidden), on its device and in its dtype.

        Raises:
            InterpError: it is not linear once its scale is held.
        """
        if norm is None:
            return cls(torch.ones_like(hidden).float(), torch.zeros_like(hidden[0]).float(), centred=False)
        ones = torch.ones_like(hidden[:1])
        probe = _alternating(ones)
        bias = norm(torch.zeros_like(ones)).double()
        weight = (norm(probe).double() - bias) / probe.double()  # but for a factor
        centred = bool((norm(ones).double() - bias).abs().max() < 0.5 * weight.abs().max())
        shape = weight * _moved(hidden.double(), centred)
        normed = norm(hidden).double() - bias
        factor = (normed * shape).sum(-1, keepdim=True) / (shape * shape).sum(-1, keepdim=True)
        frozen = cls((weight * factor).float(), bias[0].float(), centred)
        wrong = float((frozen(hidden.float()) + frozen.bias - norm(hidden).float()).abs().max())
        eps = max(torch.finfo(hidden.dtype).eps, torch.finfo(torch.float32).eps)  # what is compared is float32
        if not wrong <= 16 * eps * float(norm(hidden).abs().max()):
            raise InterpError(
                f"direct logit attribution: the final norm {type(norm).__name__} is not linear once its scale is held "
                f"(off by {wrong:.2g}), so contributions through it do not add up."
            )
        return frozen

    def __call__(self, part: Tensor) -> Tensor:
        """What a part of the residual streams gives, without the bias: (..., row, hidden) float32."""
        return self.gain * _moved(part, self.centred)


def _moved(hidden: Tensor, centred: bool) -> Tensor:
    return hidden - hidden.mean(-1, keepdim=True) if centred else hidden


def _alternating(ones: Tensor) -> Tensor:
    """A vector without mean and without zeros, nearly all of one size."""
    probe = ones.clone()
    probe[..., 1::2] = -1
    if probe.shape[-1] % 2:
        probe[..., -1] = -2
        probe[..., -2] = 1
    return probe


@dataclass(frozen=True)
class HeadRows:
    """What the head multiplies its input with for groups of tokens, the mean over a group's tokens.

    Arguments:
        weight: (row, group, hidden) float32, on the hidden axis of the residual stream; NaN: empty group.
        bias: (row, group) float32.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, model: StandardizedTransformer, groups: TokenGroups) -> HeadRows:
        """The rows of a model's head, with the linear maps before it, its scale and its divisor.

        Raises:
            InterpError: something before the head is not linear, or the weights are not in memory.
        """
        tail, module = model.tail, model._module
        *between, head = (module.get_submodule(path) for path in tail.paths[0 if tail.norm is None else 1 :])
        for part in (*between, head):
            if not isinstance(part, nn.Linear):
                raise InterpError(
                    f"direct logit attribution: {type(module).__name__} has {type(part).__name__} between its final "
                    "norm and its logits, which is not linear, so contributions do not add up to logits. "
                    "`logit_lens` reads each by itself."
                )
            if part.weight.is_meta:
                raise InterpError("direct logit attribution: the head's weights are offloaded; load them in memory.")
        groups = groups.to(head.weight.device)
        count = groups.valid.sum(-1)  # (row, group)
        weight = _mean(head.weight[groups.ids], groups, count)
        bias = torch.zeros_like(weight[..., 0])
        if head.bias is not None:
            bias = _mean(head.bias[groups.ids][..., None], groups, count)[..., 0]
        for part in reversed(between):
            if part.bias is not None:
                bias = bias + weight @ part.bias.float().to(weight.device)
            weight = weight @ part.weight.float().to(weight.device)
        scale = (1.0 if tail.scale is None else tail.scale) / (1.0 if tail.divisor is None else tail.divisor)
        return cls(weight * scale, bias * scale)


def _mean(rows: Tensor, groups: TokenGroups, count: Tensor) -> Tensor:
    """Mean over a group's tokens: (row, group, width, n) -> (row, group, n)."""
    return (rows.float() * groups.valid[..., None]).sum(2) / count[..., None]

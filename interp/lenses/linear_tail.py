"""The readout tail as a linear map: the final norm with its scale frozen at one residual stream, then rows of the head.

A layer norm or RMS norm multiplies by a weight and divides by a size that it takes from the residual stream itself.
With that size held as it is, the tail is linear, and the parts of the residual stream have parts of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp.errors import InterpError
from interp.readout import TokenGroups

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["FrozenNorm", "HeadRows"]


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
        if not wrong <= 16 * torch.finfo(hidden.dtype).eps * float(norm(hidden).abs().max()):
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
                    "`logit_lens_on_prompts` reads each by itself."
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

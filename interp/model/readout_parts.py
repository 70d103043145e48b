"""The readout of a model in two parts: what comes before the head, and the head as a matrix, by parts of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.matmul import product
from interp.model.tail import Tail

__all__ = ["ReadoutParts", "plain_head"]


@dataclass(frozen=True)
class ReadoutParts:
    """A readout whose logits can be had for some tokens of the vocabulary alone.

    `write(states(hidden), ...)` gives what `StandardizedTransformer.readout` gives, but for the rounding of products
    of other shapes. Without gradients.

    Arguments:
        states: (..., hidden) residual streams -> what the head receives, on its device and in its dtype.
        weight: (vocabulary, hidden), of the head.
        bias: (vocabulary,), or None.
        tail: what follows the head.
    """

    states: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None
    tail: Tail

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.weight.shape[0]

    def write(self, states: Tensor, start: int, stop: int, out: Tensor) -> None:
        """The logits of adjacent tokens.

        Arguments:
            states: (rows, hidden), from `states`.
            start, stop: the first token, and the one after the last.
            out: (rows, stop - start), of the dtype of `weight`; written.
        """
        product(states, self.weight[start:stop], None if self.bias is None else self.bias[start:stop], out=out)
        self.tail.finish_(out)

    def of(self, states: Tensor, ids: Tensor) -> Tensor:
        """The logits of chosen tokens, other ones for each row.

        Arguments:
            states: (row, layer, hidden), from `states`.
            ids: (row, n) token ids, the same for all layers.

        Returns:
            (row, layer, n), of the dtype of `weight`.
        """
        weight = self.weight[ids].transpose(1, 2)  # (row, hidden, n)
        logits = states @ weight if self.bias is None else torch.baddbmm(self.bias[ids][:, None], states, weight)
        return self.tail.finish_(logits)


def plain_head(head: Any) -> bool:
    """Whether a module is a matrix in memory and nothing else: no hook, no quantization, no offloading, no adapter."""
    if type(head) is not nn.Linear or type(head.weight) not in (Tensor, nn.Parameter) or head.weight.is_meta:
        return False
    if head._forward_hooks or head._forward_pre_hooks:
        return False
    # Accelerate's hook moves a batch to the head's device, which is done here too, or loads weights for each call.
    placement = getattr(head, "_hf_hook", None)
    if placement is not None and getattr(placement, "offload", True):
        return False
    # nnsight puts a `forward` of its own over that of every module, and keeps what was there.
    forward = head.__dict__.get("forward")
    return forward is None or getattr(getattr(forward, "state", None), "body", None) is nn.Linear.forward

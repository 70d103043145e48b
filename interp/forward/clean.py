"""Target prompts run once as they are, and the rows that leave them: a frozen prefix, and layers one at a time."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.forward.prefix import Call, FrozenPrefix, calls_of
from interp.forward.rotary import forget_lengths
from interp.forward.sharing import sharing
from interp.matmul import faster_products

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["CleanRun"]


@dataclass(frozen=True)
class CleanRun:
    """Prompts of one length, run as they are up to the last layer, ready for rows that leave them at some layer.

    What such a row changes lies at position `start` or later. So the tokens before it are computed once and frozen, and
    a row needs only the layers that it goes through itself.

    Arguments:
        model: the model.
        prefix: the tokens before `start`.
        calls: how each layer was called for the tokens from `start` on, and what that gave.
    """

    model: StandardizedTransformer
    prefix: FrozenPrefix
    calls: list[Call]

    @classmethod
    @torch.no_grad()
    def of(cls, model: StandardizedTransformer, input_ids: Tensor, start: int) -> CleanRun:
        """Run some prompts.

        Arguments:
            model: the model.
            input_ids: (row, length), without padding.
            start: the first position that anything is changed at, counted from 0.
        """
        forget_lengths(model)
        prefix = FrozenPrefix.of(model, input_ids[:, :start])
        return cls(model, prefix, calls_of(model, prefix, input_ids[:, start:]))

    def hidden(self, layer: int) -> Tensor:
        """(row, position, hidden), the residual stream after a layer, from position `start` on; -1: before layer 0."""
        return self.calls[layer].output if layer >= 0 else self.calls[0].input

    @torch.no_grad()
    def through(self, layer: int, hidden: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Let rows go through one layer.

        Arguments:
            layer: which.
            hidden: (multiple of the prompts, position, hidden), the residual stream before it from position `start` on;
                row i goes on from prompt i modulo the number of prompts.
            blocked: (1 or row, 1 or head, position, key), True where a position's attention must not look; keys are
                counted from the beginning of the prompt. None: it looks as the model does.

        Returns:
            The same after the layer.
        """
        call = self.calls[layer]
        keywords = call.keywords
        if blocked is not None:
            if "attention_mask" not in keywords:
                raise NotImplementedError("layers of this family are not given an attention mask")
            keywords = keywords | {"attention_mask": self._without(keywords["attention_mask"], blocked, hidden.dtype)}
        model, part = self.model, self.model.layer(layer)._module
        products = faster_products(hidden.shape[0] * hidden.shape[1], model.hidden_size, model.dtype, model.device)
        with sharing(model._module, part=part) if model.shares_prefix else nullcontext(), products:
            output: Any = part(hidden, **keywords)
        return output if isinstance(output, Tensor) else output[0]

    def _without(self, mask: Tensor | None, blocked: Tensor, dtype: torch.dtype) -> Tensor:
        """A mask (row, 1 or head, position, key) of the kind that the model made, which also hides what is blocked."""
        seen = ~blocked
        positions, keys = blocked.shape[-2:]
        if mask is None:
            causal = torch.ones(positions, keys, dtype=torch.bool, device=blocked.device).tril(keys - positions)
            allowed = seen & causal
            if self.model.config._attn_implementation != "eager":
                return allowed
            mask = torch.zeros((), dtype=dtype, device=blocked.device)
            return mask.masked_fill(~allowed, torch.finfo(dtype).min)
        if mask.dtype == torch.bool:
            # A token sees itself: what the mask has there is what it says of keys that are seen (MPT's says False).
            is_seen = mask[..., -1:, -1:]
            return ((mask == is_seen) & seen) == is_seen
        return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)

"""The model's own readout tail: from the residual stream after the last layer to the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.architectures import Architecture, submodule
from interp.model.hooks import is_hooked

__all__ = ["Tail"]


@dataclass(frozen=True)
class Tail:
    """Final norm, what stands before the head, head, scale and softcap.

    Arguments:
        paths: the modules, in order.
        norm: the first of them, where that is the final norm; None: the model has none.
        scale: what the head's output is multiplied by; None: nothing.
        divisor: what it is divided by; None: nothing.
        softcap: c of c tanh(logits / c); None: no cap.
    """

    paths: tuple[str, ...]
    norm: str | None
    scale: float | None
    divisor: float | None
    softcap: float | None

    @classmethod
    def of(cls, architecture: Architecture, config: Any, module: Any) -> Tail:
        """The tail of one model, by its family's record."""
        norm = () if architecture.final_norm is None else (architecture.final_norm,)
        between = tuple(path for path in architecture.before_head if submodule(module, path) is not None)
        return cls(
            (*norm, *between, architecture.head),
            architecture.final_norm,
            _number(config, architecture.logit_scale),
            _number(config, architecture.logit_divisor),
            _number(config, architecture.softcap),
        )

    def __call__(self, hidden: Tensor, modules: Callable[[str], Any], *, negate: bool = False) -> Tensor:
        """Logits of hidden states.

        Arguments:
            hidden: (..., hidden), on the device and in the dtype of the first module.
            modules: path -> what is called.
            negate: turn the sign of what the final norm gives, or of `hidden` where there is none.
        """
        hidden = _called(modules(self.paths[-1]), self.before_head(hidden, modules, negate=negate))
        if self.scale is not None:
            hidden = hidden * self.scale
        if self.divisor is not None:
            hidden = hidden / self.divisor
        if self.softcap is not None:
            hidden = torch.tanh(hidden / self.softcap) * self.softcap
        return hidden

    def before_head(self, hidden: Tensor, modules: Callable[[str], Any], *, negate: bool = False) -> Tensor:
        """What the head receives; arguments as of a call."""
        if negate and self.norm is None:
            hidden = -hidden
        for path in self.paths[:-1]:
            hidden = _called(modules(path), hidden)
            if negate and path == self.norm:
                hidden = -hidden
        return hidden

    def finish_(self, logits: Tensor) -> Tensor:
        """Scale and softcap of what the head gave, in place: the same steps as of a call, which keeps gradients."""
        if self.scale is not None:
            logits *= self.scale
        if self.divisor is not None:
            logits /= self.divisor
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


def _called(module: Any, hidden: Tensor) -> Tensor:
    """A module, or its envoy, of (..., hidden). To hooks of the user's, each state is the one token of a prompt."""
    if not is_hooked(getattr(module, "_module", module)):
        return module(hidden)
    given = module(hidden.reshape(-1, 1, hidden.shape[-1]))
    return given.reshape(*hidden.shape[:-1], given.shape[-1])


def _number(config: Any, name: str | None) -> float | None:
    return None if name is None else getattr(config, name, None)

"""From the residual stream to the logits: the final norm and what follows it, the head as a matrix, nearest tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from interp.architectures import Architecture, submodule
from interp.errors import InterpError
from interp.matmul import product
from interp.model.hooks import is_hooked

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["ReadoutParts", "Tail", "closest_tokens", "plain_head"]


@dataclass(frozen=True)
class Tail:
    """Final norm, what stands before the head, head, scale and softcap.

    Arguments:
        paths: the modules, in order.
        norm: the first of them, where that is the final norm; None: the model has none.
        scale: what the head's output is multiplied by; None: nothing.
        divisor: what it is divided by; None: nothing.
        softcap: c of c tanh(logits / c); None: no cap.
        silenced: tokens that are never said: their logits are the lowest number of the dtype.
    """

    paths: tuple[str, ...]
    norm: str | None
    scale: float | None
    divisor: float | None
    softcap: float | None
    silenced: tuple[int, ...] = ()

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
            () if architecture.silenced is None else tuple(attrgetter(architecture.silenced)(module)),
        )

    def __call__(self, hidden: Tensor, modules: Callable[[str], Any], *, negate: bool = False) -> Tensor:
        """Logits of hidden states.

        Arguments:
            hidden: (..., hidden), on the device and in the dtype of the first module.
            modules: path -> what is called.
            negate: negate the output of the final norm, or `hidden` where there is none.
        """
        hidden = _called(modules(self.paths[-1]), self.before_head(hidden, modules, negate=negate))
        if self.scale is not None:
            hidden = hidden * self.scale
        if self.divisor is not None:
            hidden = hidden / self.divisor
        if self.softcap is not None:
            hidden = torch.tanh(hidden / self.softcap) * self.softcap
        if self.silenced:
            hidden = hidden.masked_fill(self._silent(hidden), torch.finfo(hidden.dtype).min)
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

    def finish_(self, logits: Tensor, ids: Tensor | None = None) -> Tensor:
        """Do to the head's output what follows the head, in place: the same steps as in a call, which keeps gradients.

        Arguments:
            logits: (..., n), of n tokens.
            ids: which they are, of a shape that broadcasts to that of `logits`; None: all, in order.
        """
        if self.scale is not None:
            logits *= self.scale
        if self.divisor is not None:
            logits /= self.divisor
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.silenced:
            logits.masked_fill_(self._silent(logits, ids), torch.finfo(logits.dtype).min)
        return logits

    def _silent(self, logits: Tensor, ids: Tensor | None = None) -> Tensor:
        """Which of the logits belong to tokens that are never said."""
        ids = torch.arange(logits.shape[-1], device=logits.device) if ids is None else ids.to(logits.device)
        return torch.isin(ids, torch.tensor(self.silenced, device=logits.device))


def _called(module: Any, hidden: Tensor) -> Tensor:
    """A module, or its envoy, of (..., hidden). To hooks of the user's, each state is the one token of a prompt."""
    if not is_hooked(getattr(module, "_module", module)):
        return module(hidden)
    given = module(hidden.reshape(-1, 1, hidden.shape[-1]))
    return given.reshape(*hidden.shape[:-1], given.shape[-1])


def _number(config: Any, name: str | None) -> float | None:
    return None if name is None else getattr(config, name, None)


@dataclass(frozen=True)
class ReadoutParts:
    """A readout that gives the logits of some tokens of the vocabulary alone.

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
        self.tail.finish_(out, torch.arange(start, stop, device=out.device))

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
        return self.tail.finish_(logits, ids[:, None])


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


def closest_tokens(
    model: StandardizedTransformer,
    hidden: Tensor,
    k: int = 5,
    *,
    named: Callable[[Tensor, Tensor], dict[str, float]] | None = None,
) -> dict[str, float] | list[dict[str, float]]:
    """The most probable tokens of hidden states, read out through the model's own tail.

    Arguments:
        model: the model.
        hidden: (hidden,) or (row, hidden).
        k: how many tokens.
        named: token ids and their probabilities, best first -> what is returned of them; None: as below.

    Returns:
        Token -> probability, best first, one dictionary, or one a row. Always k entries: a token that several ids
        share, or that the tokenizer lacks, has its id behind it (`the#262`, `#50300`).

    Raises:
        InterpError: `hidden` has other axes, or k is out of range.
    """
    if hidden.dim() not in (1, 2):
        raise InterpError(f"expected hidden (hidden,) or (row, hidden), got shape {tuple(hidden.shape)}.")
    if not 1 <= k <= model.vocab_size:
        raise InterpError(f"k: expected 1 to {model.vocab_size} (the vocabulary), got {k}.")
    probabilities = model.readout(hidden).float().softmax(-1)
    top = probabilities.topk(k, dim=-1)
    names = named or partial(_named, model.tokenizer)
    if hidden.dim() == 1:
        return names(top.indices, top.values)
    return [names(ids, values) for ids, values in zip(top.indices, top.values, strict=True)]


def _named(tokenizer: PreTrainedTokenizerBase, ids: Tensor, values: Tensor) -> dict[str, float]:
    named: dict[str, float] = {}
    for token_id, value in zip(ids.tolist(), values.tolist(), strict=True):
        text = tokenizer.decode([token_id]) if token_id < len(tokenizer) else ""
        assert isinstance(text, str)
        named[f"{text}#{token_id}" if text in named or not text else text] = value
    return named

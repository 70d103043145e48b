"""The next token from logits: the most probable one, or a draw; and the tokens that end a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Sampling", "stop_tokens"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Arguments:
        temperature: logits are divided by it and a token is drawn; 0: the most probable token is taken.
        top_k: only so many of the most probable tokens may be drawn; None: all.
        top_p: only the most probable tokens that together have this probability may be drawn (nucleus sampling,
            Holtzman et al. 2020, arXiv 1904.09751), after `top_k`; None: all.
        seed: of the draws.

    Raises:
        InterpError: a number out of its range, or `top_k` or `top_p` where nothing is drawn.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InterpError(f"temperature: expected 0 (the most probable token) or more, got {self.temperature}.")
        if self.top_k is not None and self.top_k < 1:
            raise InterpError(f"top_k: expected at least 1, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InterpError(f"top_p: expected a probability above 0 and up to 1, got {self.top_p}.")
        if self.seed < 0:
            raise InterpError(f"seed: expected 0 or more, got {self.seed}.")
        if not self.temperature and not (self.top_k is None and self.top_p is None):
            raise InterpError("top_k and top_p choose what is drawn from: give a temperature, e.g. temperature=1.0.")

    def noise(self, example: int, layer: int, tokens: int) -> NDArray[np.float64]:
        """(token,), numbers in [0, 1) that decide the draws after one example's patch at one layer.

        They depend on nothing else: not on the batch, not on which layers are asked for, not on how many tokens.
        """
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, layer, example])).random(tokens)

    def choose(self, logits: Tensor, noise: Tensor) -> Tensor:
        """The next tokens.

        Arguments:
            logits: (run, vocabulary), any float dtype.
            noise: (run,), numbers in [0, 1): how far along the probabilities the token lies. Without a draw, unused.

        Returns:
            (run,) token ids, on the device of the logits.

        Raises:
            InterpError: logits with NaN or infinity.
        """
        chosen = self._drawn(logits, noise) if self.temperature else logits.argmax(-1)
        if not bool(logits.gather(1, chosen[:, None]).isfinite().all()):
            raise InterpError(
                "the logits hold NaN or infinity: the model's numbers overflowed. float16 ends at 65504, which large "
                "residual streams exceed; load the model as bfloat16 or float32."
            )
        return chosen

    def _drawn(self, logits: Tensor, noise: Tensor) -> Tensor:
        scores, order = logits.float() / self.temperature, None
        if self.top_k is not None or self.top_p is not None:
            scores, order = scores.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None and order is not None:
            scores, order = scores[:, : self.top_k], order[:, : self.top_k]
        probabilities = scores.softmax(-1, dtype=torch.float64)
        if self.top_p is not None:
            before = probabilities.cumsum(-1) - probabilities  # of the tokens above each
            probabilities = probabilities.masked_fill(before >= self.top_p, 0.0)
        cumulative = probabilities.cumsum(-1)
        along = noise.to(cumulative.device, torch.float64)[:, None] * cumulative[:, -1:]
        # The first token that reaches beyond: never one without probability.
        places = torch.searchsorted(cumulative, along, right=True).clamp(max=cumulative.shape[-1] - 1)
        return (places if order is None else order.gather(1, places))[:, 0]


def stop_tokens(model: StandardizedTransformer) -> tuple[int, ...]:
    """The tokens that end what a model writes: of its generation config, or else its tokenizer's."""
    config = getattr(model._module, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    given = model.tokenizer.eos_token_id if given is None else given
    return () if given is None else (given,) if isinstance(given, int) else tuple(given)

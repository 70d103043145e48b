"""Settings of a tuned lens's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from interp.errors import InterpError, nearest
from interp.translators.tuned_lens import TunedLens

__all__ = ["Loss", "OptimizerName", "TuningSettings"]

Loss = Literal["kl", "cross_entropy"]
OptimizerName = Literal["sgd", "adam"]


@dataclass(frozen=True)
class TuningSettings:
    """How a tuned lens is trained. What is not given is as in the paper's library.

    Arguments:
        steps: optimizer steps.
        tokens_per_step: a step takes sequences until they have this many tokens.
        loss: `kl`, KL(the model's final distribution || the lens's); or `cross_entropy` with the token that follows.
        optimizer: `sgd` (Nesterov) or `adam` (with AMSGrad).
        learning_rate: at its highest; None: 1.0 for sgd (times 1 - momentum, as its momentum adds up), 1e-3 for adam.
        momentum: of sgd; the first beta of adam.
        weight_decay: pulls translators to the identity.
        warmup_steps: steps over which the learning rate rises; None: none for sgd, a fifth (at most 1000) for adam.
            Then it falls linearly to zero.
        clip: largest norm of a layer's gradient.
        layers: the layers that are trained, ascending; None: all but the last.
        bias_only: train no matrices.
        batch_tokens: tokens in a forward pass at most, padding counted; memory goes with it.

    Raises:
        InterpError: a setting that makes no sense.
    """

    steps: int = 250
    tokens_per_step: int = 1 << 15
    loss: Loss = "kl"
    optimizer: OptimizerName = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-3
    warmup_steps: int | None = None
    clip: float = 1.0
    layers: tuple[int, ...] | None = None
    bias_only: bool = False
    batch_tokens: int = 1 << 12

    def __post_init__(self) -> None:
        for name, known in (("loss", get_args(Loss)), ("optimizer", get_args(OptimizerName))):
            if getattr(self, name) not in known:
                raise InterpError(f"{name}: unknown {getattr(self, name)!r}.{nearest(getattr(self, name), known)}")
        for name in ("steps", "tokens_per_step", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InterpError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if not 0 <= self.warmup < self.steps:
            raise InterpError(f"warmup_steps: expected fewer than the {self.steps} steps, got {self.warmup}.")
        if not 0 <= self.momentum < 1 or self.clip <= 0 or self.weight_decay < 0 or self.highest_rate <= 0:
            raise InterpError(
                "expected 0 <= momentum < 1, clip > 0, weight_decay >= 0 and learning_rate > 0, got "
                f"{self.momentum}, {self.clip}, {self.weight_decay} and {self.highest_rate}."
            )

    @property
    def warmup(self) -> int:
        """Steps of warmup."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return min(1000, self.steps // 5) if self.optimizer == "adam" else 0

    @property
    def highest_rate(self) -> float:
        """The learning rate after warmup."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1.0 if self.optimizer == "sgd" else 1e-3

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0: linear up, then linear down, never zero."""
        if step < self.warmup:
            return self.highest_rate * (step + 1) / (self.warmup + 1)
        return self.highest_rate * (self.steps - step) / (self.steps - self.warmup)

    def make_optimizer(self, lens: TunedLens) -> torch.optim.Optimizer:
        """An optimizer of a lens's translators."""
        parameters = [parameter for layer in lens.layers for parameter in lens.parameters_of(layer)]
        if self.optimizer == "adam":
            return torch.optim.Adam(
                parameters, betas=(self.momentum, 0.999), amsgrad=True, weight_decay=self.weight_decay
            )
        return torch.optim.SGD(
            parameters, momentum=self.momentum, nesterov=self.momentum > 0, weight_decay=self.weight_decay
        )

    def apply_rate(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate of a step."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step) * (1 - self.momentum if self.optimizer == "sgd" else 1)

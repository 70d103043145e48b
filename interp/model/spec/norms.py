"""What a norm does: measured, since names of classes do not always say (T5's `LayerNorm` is an RMS norm)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["is_norm", "read_norm"]

_EPS = ("eps", "variance_epsilon")


def is_norm(module: Any) -> bool:
    """Whether a module is a norm, by its class name."""
    return "Norm" in type(module).__name__


def read_norm(norm: nn.Module, width: int) -> dict[str, Any]:
    """Kind, epsilon and offset of a norm.

    Arguments:
        norm: the module. Its own weights are not used, so they may be on any device, or on none.
        width: of the vectors that it takes.
    """
    found: dict[str, Any] = {}
    eps = next((getattr(norm, name) for name in _EPS if getattr(norm, name, None) is not None), None)
    if isinstance(eps, float):
        found["norm_eps"] = eps
    vectors = torch.linspace(-1.0, 2.0, 2 * width, dtype=torch.float32, device="cpu").view(2, width) ** 2
    try:
        plain, shifted = _applied(norm, 1.0, vectors), _applied(norm, 1.0, vectors + 1.0)
        without_weight = _applied(norm, 0.0, vectors)
    except (TypeError, RuntimeError):  # a norm that wants more than its input
        return found
    found["normalization"] = "LayerNorm" if torch.allclose(plain, shifted, atol=1e-3) else "RMSNorm"
    if getattr(norm, "weight", None) is not None:
        found["norm_weight_offset"] = bool(without_weight.abs().max() > 0)
    return found


@torch.no_grad()
def _applied(norm: nn.Module, weight: float, vectors: Tensor) -> Tensor:
    """The output of a norm whose weights are all one number and whose biases are 0; no hook of it runs."""
    probe = copy.copy(norm)
    probe.__dict__["_parameters"] = {
        name: None
        if own is None
        else nn.Parameter(torch.full(own.shape, 0.0 if name == "bias" else weight, dtype=torch.float32, device="cpu"))
        for name, own in norm._parameters.items()
    }
    return type(norm).forward(probe, vectors)

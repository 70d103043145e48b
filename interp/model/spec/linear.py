"""Linear maps, by whatever class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["linear_maps", "widths"]


def widths(module: Any) -> tuple[int, int] | None:
    """Numbers that a linear map takes and gives, also of a quantized one; None for any other module."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.in_features, module.out_features
    if hasattr(module, "nx") and hasattr(module, "nf"):  # GPT-2's Conv1D
        return module.nx, module.nf
    return None


def linear_maps(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear maps in a module, by the last part of their path."""
    for path, inner in module.named_modules():
        if widths(inner) is not None:
            yield path.rpartition(".")[2], inner

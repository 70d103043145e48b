"""Looks up one value of a config, and the linear maps of a module, of whatever class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


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


def value_of(config: Any, *names: str) -> Any:
    """The first of several fields that a config has and that is not None; None where there is none.

    Arguments:
        config: a transformers config. Of a field that differs by layer, the value of most layers is taken.
        names: the fields' names.
    """
    for name in names:
        inside, _, rest = name.partition(".")
        if rest:
            nested = getattr(config, inside, None)
            value = nested.get(rest) if isinstance(nested, dict) else getattr(nested, rest, None)
        elif getattr(config, "attribute_map", {}).get(name, name) in (
            getattr(config, "per_layer_attributes", None) or ()
        ):
            values = [getattr(layer, name, None) for layer in config.per_layer_config]
            value = max(values, key=values.count)
        else:
            value = getattr(config, name, None)
        if value is not None:
            return value
    return None


def is_matrix(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix of plain numbers and does nothing else."""
    if type(module) not in (nn.Linear, Conv1D) or module._forward_hooks or module._forward_pre_hooks:
        return False
    weight: Any = module.weight
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()


def is_linear(module: nn.Module, call: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether what a projection gives for a sum is the sum of what it gives for the parts, but for roundings.

    Where it is more than a matrix, that is tried. A projection that quantizes what it receives (8-bit dynamic
    quantization, LLM.int8, FP8) rounds each part to a grid of its own: found where both parts are of one size, or in
    the small part beside a large one.

    Arguments:
        module: the projection.
        call: calls it.
        dtype, device: of what it receives.
    """
    if is_matrix(module):
        return True
    width = next((sizes[0] for inner in module.modules() if (sizes := widths(inner)) is not None), None)
    if width is None:
        return True  # nothing says what it takes; the proofs speak for it
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, 4, width, generator=generator, dtype=torch.float32, device="cpu")
    large = torch.zeros_like(first)
    large[..., 0] = 4.0  # LLM.int8 keeps what is larger than 6 out of its grid
    for one, other in ((first, second), (large, 0.05 * second)):
        parts = [part.to(device=device, dtype=dtype) for part in (one, other, torch.zeros_like(one))]
        alone = [call(part).double() for part in parts]
        whole = call(parts[0] + parts[1]).double() - alone[2]
        apart = alone[0] + alone[1] - 2 * alone[2]
        # Coarser products, such as TensorFloat-32, round to 1e-3.
        if bool((whole - apart).norm() > max(1e-3, torch.finfo(dtype).eps) * whole.norm()):
            return False
    return True

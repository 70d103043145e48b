"""Prompts of several beginnings, and what plain transformers gives of each alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.architectures import submodule
from tests.families import build
from tests.tiny import tiny_tokenizer

BUDGET = 40


def random_ids(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]


def prompts() -> list[list[int]]:
    """Two beginnings, longer than the families' windows, with ends of several lengths; and some that share nothing."""
    one, other, *ends = random_ids(10, 8, 3, 7, 1, 4, 2, 6, 5, 9, 2)
    begun = [one, one, one, other, other, other, [], [], one]
    return [beginning + end for beginning, end in zip(begun, ends, strict=True)]


@cache
def plain_values(name: str) -> list[Tensor]:
    """For each prompt, (layer, position, hidden) of the residual stream by plain transformers, alone and unpadded."""
    module = build(name)
    wrapped = StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False)
    layers: Any = submodule(module, wrapped.architecture.layers)
    found = []
    for ids in prompts():
        seen: list[Tensor] = []

        def keep(_: nn.Module, args: Any, output: Any, seen: list[Tensor] = seen) -> None:
            seen.append((output if isinstance(output, Tensor) else output[0])[0].clone())

        handles = [layer.register_forward_hook(keep) for layer in layers]
        with torch.no_grad():
            module(input_ids=torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        found.append(torch.stack(seen))
    return found


def off_by(got: Tensor, expected: Tensor) -> float:
    """The largest relative difference of a vector."""
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max())

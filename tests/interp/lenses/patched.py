"""Patched runs in plain transformers with torch hooks, in any family: one prompt at a time, whole forward passes.

Independent of `interp` but for the names of the layers' modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.architectures import submodule
from tests.families import build
from tests.tiny import tiny_tokenizer

# Sliding window, grouped queries, parallel residual, norms after, softcap, experts, learned positions, linear biases,
# attention sinks, latent attention; the rest are served the plain way (state, shared keys, masks of their own).
FAST = [
    "llama", "mistral", "gemma2", "gemma3_text", "phi", "cohere2", "olmo2", "mixtral", "gpt_oss", "gpt2", "opt", "mpt",
    "deepseek_v3", "gptj",
]  # fmt: skip
SLOW = ["bloom", "mamba", "recurrent_gemma", "zamba2"]


@cache
def wrapped(name: str) -> StandardizedTransformer:
    return StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False)


class PatchedTwin:
    """A family's tiny model with hooks on its layers."""

    def __init__(self, name: str) -> None:
        self.model: Any = build(name)
        self.layers: Any = submodule(self.model, wrapped(name).architecture.layers)

    @torch.no_grad()
    def residuals(self, ids: Sequence[int]) -> Tensor:
        """(layer, position, hidden), the output of every layer."""
        seen: list[Tensor] = []

        def keep(_: nn.Module, args: Any, output: Any) -> None:
            seen.append((output if isinstance(output, Tensor) else output[0])[0].clone())

        hooks = [layer.register_forward_hook(keep) for layer in self.layers]
        self.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
        for hook in hooks:
            hook.remove()
        return torch.stack(seen)

    @torch.no_grad()
    def logits(
        self, ids: Sequence[int], positions: Sequence[int] = (), written: Mapping[int, Tensor] | None = None
    ) -> Tensor:
        """(vocabulary,) float64 after the last token; `written`: layer -> (position, hidden)."""

        def writing(latent: Tensor) -> Any:
            def hook(_: nn.Module, args: Any, output: Any) -> Any:
                hidden = (output if isinstance(output, Tensor) else output[0]).clone()
                for position, vector in zip(positions, latent, strict=True):
                    hidden[0, position] = vector
                return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

            return hook

        hooks = [self.layers[at].register_forward_hook(writing(latent)) for at, latent in (written or {}).items()]
        logits: Tensor = self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
        for hook in hooks:
            hook.remove()
        return logits.double()

    def greedy(
        self, ids: Sequence[int], positions: Sequence[int], written: Mapping[int, Tensor], tokens: int, stop: int = -1
    ) -> tuple[list[int], float]:
        """New tokens by recomputing everything for each, and how much more the nearest choice ever won by."""
        found: list[int] = []
        margin = float("inf")
        while len(found) < tokens and stop not in found:
            best = self.logits([*ids, *found], positions, written).topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            found.append(int(best.indices[0]))
        return found, margin

    def log_probs(self, logits: Tensor, groups: Sequence[Sequence[int]]) -> np.ndarray:
        """(group,), logarithms of summed probabilities."""
        probabilities = logits.softmax(-1)
        return np.array([float(probabilities[list(group)].sum().log()) for group in groups])

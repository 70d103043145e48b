"""Losses and gradients in many families, on ragged prompts in one padded batch, against prompts run one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.architectures import submodule
from interp.model import StandardizedTransformer
from interp.translators import TunedLens
from interp.translators.states import token_states
from interp.translators.training import accumulate_gradients
from tests.families import build
from tests.interp.translators.conftest import random_sequences
from tests.interp.translators.twins import TunedTwin, as_tensors, random_translators
from tests.tiny import tiny_tokenizer

# Sliding windows, grouped queries, learned and no positions, parallel layers, norms after the sublayer, softcaps and
# scaled logits, mixtures of experts, recurrent layers, biases in the head.
NAMES = [
    "mistral", "qwen2", "gemma2", "gemma3_text", "olmo2", "gptj", "phi", "cohere", "cohere2", "granite", "opt", "mpt",
    "bloom", "falcon", "gpt_oss", "mixtral", "deepseek_v3", "jamba", "mamba2",
]  # fmt: skip


class FamilyTwin(TunedTwin):
    """A family's tiny model and its layers, without `interp`'s names."""

    def __init__(self, module: nn.Module, layers: nn.ModuleList) -> None:
        self.model, self.layers = module, layers


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_equal_those_of_whole_prompts(name: str) -> None:
    model = StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False)
    plain: Any = build(name)
    twin = FamilyTwin(plain, submodule(plain, model.architecture.layers))  # type: ignore[arg-type]
    layers = (0, model.num_layers - 2)[: model.num_layers - 1]
    sequences = list(random_sequences())
    for loss in ("kl", "cross_entropy"):
        lens = TunedLens.of(model, sorted(set(layers)))
        lens.take(as_tensors(random_translators(lens.layers, model.hidden_size)))
        totals: dict[int, Tensor] = {}
        accumulate_gradients(model, lens, token_states(model, sequences, lens.layers), loss, totals)  # type: ignore[arg-type]
        translators = random_translators(lens.layers, model.hidden_size, gradients=True)
        by_sequence = [twin.losses(sequence.ids, translators, loss) for sequence in sequences]
        _assert_equal(lens, totals, translators, by_sequence)


def _assert_equal(
    lens: TunedLens, totals: dict[int, Tensor], translators: Any, by_sequence: Sequence[dict[int, Tensor]]
) -> None:
    for layer, (weight, bias) in translators.items():
        whole = torch.stack([each[layer] for each in by_sequence]).sum()
        whole.backward()
        assert float(totals[layer]) == pytest.approx(float(whole.detach()), rel=1e-4)
        for own, twins in zip(lens.parameters_of(layer), (bias, weight), strict=True):
            assert own.grad is not None
            torch.testing.assert_close(own.grad, twins.grad, rtol=1e-3, atol=1e-4 * float(twins.grad.abs().max()))

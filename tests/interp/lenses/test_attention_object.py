"""The attention-object lens against whole target prompts run one by one, with a hook on each attention module."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.architectures import submodule
from interp.lenses import attention_object_lens
from tests.families import build
from tests.interp.lenses.attention_twins import attention_inputs, received_logits
from tests.interp.lenses.twins import assert_equal, expected
from tests.tiny import tiny_tokenizer

FAST = [
    "llama", "mistral", "gemma2", "gemma3_text", "olmo2", "gptj", "gpt_neox", "phi", "cohere", "cohere2", "gpt2", "opt",
    "gpt_oss", "mixtral", "deepseek_v3", "llama4_text", "falcon", "falcon_alibi", "stablelm_parallel", "mpt", "ctrl",
    "doge",
]  # fmt: skip
SLOW = ["bloom", "xglm", "jamba", "openai-gpt"]

SOURCES = [[1, 17, 33, 250], [1, 8], [1, 99, 98, 97], [1, 300, 12, 13, 14]]
TARGETS = [[1, 40, 41, 42, 43, 44], [1, 60], [1, 40, 41, 42, 43, 44], [1, 70, 71, 72, 73, 74, 75, 76, 77]]
POSITIONS = [5, 1, 5, 3]
GROUPS = [[[3 * n, 3 * n + 1], [100 + n], [200, 201, 202]] for n in range(len(TARGETS))]


@cache
def loaded(name: str) -> tuple[StandardizedTransformer, nn.Module, dict[int, nn.Module]]:
    """The standardized model, a plain one, and the plain one's attention by layer."""
    model, plain = StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False), build(name)
    layers: Any = submodule(plain, model.architecture.layers)
    path = model.architecture.attention.module  # type: ignore[union-attr]
    found = {index: submodule(layer, path) for index, layer in enumerate(layers)}
    return model, plain, {index: module for index, module in found.items() if module is not None}


def sources(name: str) -> Tensor:
    """(layer with attention, example, hidden) at the last token of the sources."""
    _, plain, attentions = loaded(name)
    return torch.stack([attention_inputs(plain, list(attentions.values()), ids, -1) for ids in SOURCES], dim=1)


def by_hand(
    name: str, latents: Tensor, windows: Sequence[range], positions: Sequence[int] = POSITIONS, targets: Any = TARGETS
) -> list[dict[str, np.ndarray]]:
    _, plain, attentions = loaded(name)
    held = dict(zip(attentions, latents, strict=True))
    examples = []
    for example, (ids, position, groups) in enumerate(zip(targets, positions, GROUPS, strict=True)):
        logits = [
            received_logits(plain, attentions, ids, position, {j: held[j][example] for j in window if j in held})
            for window in windows
        ]
        flat = expected([*logits, received_logits(plain, {}, ids, position, {})], groups, 3, None)
        one = {key: values[:-1] for key, values in flat.items() if key != "model_top_id"}
        examples.append({**one, "baseline": flat["log_prob"][-1]})
    return examples


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_equals_the_twin(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, _, _ = loaded(name)
    latents = sources(name)
    layers = [1, 3] if name == "jamba" else [0, 1, 3]
    with caplog.at_level(logging.WARNING, logger="interp"):
        result = attention_object_lens(
            model, latents, TARGETS, POSITIONS, GROUPS, num_layers=2, layers=layers,
            latent_layers=[1, 3] if name == "jamba" else range(model.num_layers), top_k=3, batch_size=2,
        )  # fmt: skip
    windows = [range(layer, min(layer + 2, model.num_layers)) for layer in layers]
    assert_equal(result.arrays(), by_hand(name, latents, windows), atol=1e-5)
    assert model.verdicts["attention that receives other vectors"] == (name in FAST)
    assert len([record for record in caplog.records if "(slow)" in record.message]) == (name in SLOW)

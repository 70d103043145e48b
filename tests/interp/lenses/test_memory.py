"""No lens makes logits of all its prompts: memory does not depend on how many there are.

Every operation of torch is watched. With the vocabulary read 64 tokens at a time, no tensor has a row of logits at all,
but where a token is chosen: there, those of a few runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp.lenses import (
    Latents,
    attention_knockout,
    attention_object_lens,
    direct_logit_attribution,
    logit_lens,
    patchscope_generate,
    patchscope_grid,
    patchscope_lens,
    tuned_lens,
)
from interp.model import StandardizedTransformer
from interp.translators import AffineMap, TunedLens, evaluate_tuned_lens
from tests.interp.translators.conftest import random_sequences
from tests.made import TensorsMade
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS, VOCABULARY_SIZE

Standardized = Callable[[str], StandardizedTransformer]
WORDS = ["king", "dog", "house", "tree", "river", "table", "stone", "bread"]
TARGETS = {"it": ["libro", "cane"], "fr": ["livre"]}


def turned() -> AffineMap:
    """A map of another model's states, as wide as they are."""
    weight = torch.linalg.qr(torch.randn(HIDDEN_SIZE, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0)))[0]
    layers = tuple(range(NUM_LAYERS))
    return AffineMap(layers, weight.repeat(NUM_LAYERS, 1, 1), torch.zeros(NUM_LAYERS, HIDDEN_SIZE))


def run(lens: str, model: StandardizedTransformer, other: StandardizedTransformer, count: int) -> Any:
    """A lens over so many prompts."""
    prompts = [f"The {WORDS[row % 8]} {WORDS[row // 8 % 8]}" for row in range(count)]
    across: dict[str, Any] = dict(source_model=other, mapping=turned(), targets=TARGETS)
    match lens:
        case "logit lens":
            return logit_lens(model, prompts, positions=["first", "last"], targets=TARGETS)
        case "patchscope":
            return patchscope_lens(model, prompts, "cat", targets=TARGETS)
        case "patchscope from another model":
            return patchscope_lens(model, prompts, "cat", **across)
        case "grid from another model":
            return patchscope_grid(model, prompts, "cat", **across)
        case "generation":
            return patchscope_generate(model, prompts, "cat", max_new_tokens=3)
        case "attention object":
            return attention_object_lens(model, prompts, "king king", targets=TARGETS)
        case "knock-out":
            return attention_knockout(model, prompts, {"first": "first"}, window=2)
        case "attribution":
            return direct_logit_attribution(model, prompts, TARGETS, positions=["first", "last"], batch_tokens=64)
        case "tuned lens":
            hidden = torch.randn(NUM_LAYERS, count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
            return tuned_lens(model, TunedLens.of(model), Latents(hidden, range(NUM_LAYERS)), [[[1]]] * count)
    assert lens == "evaluation"
    return evaluate_tuned_lens(model, TunedLens.of(model), [*random_sequences()] * (count // 8), batch_tokens=64)


LENSES = [
    "logit lens", "patchscope", "patchscope from another model", "grid from another model", "attention object",
    "knock-out", "attribution", "tuned lens", "evaluation",
]  # fmt: skip


def rows_of_logits(made: TensorsMade) -> int:
    """The most rows of a whole vocabulary in one tensor, however they are arranged."""
    return max(
        (shape.numel() // VOCABULARY_SIZE for shape in made.shapes if shape[-1:] == (VOCABULARY_SIZE,)), default=0
    )


@pytest.mark.parametrize("lens", LENSES)
def test_no_row_of_logits_is_made(lens: str, standardized: Standardized, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = standardized("gemma2"), standardized("llama")
    run(lens, model, other, 8)  # what is found out about a model once is found out
    monkeypatch.setattr("interp.batching.CPU_ELEMENTS", 64 * (2 * NUM_LAYERS + 2))
    monkeypatch.setattr("interp.readout.stream.CPU_TOKENS", 64)
    with TensorsMade() as made:
        run(lens, model, other, 16)
    assert rows_of_logits(made) == 0


def test_generation_holds_the_logits_of_a_few_runs(standardized: Standardized, monkeypatch: pytest.MonkeyPatch) -> None:
    model = standardized("llama")
    whole = run("generation", model, model, 16)
    monkeypatch.setattr("interp.batching.CPU_ELEMENTS", 3 * VOCABULARY_SIZE)
    with TensorsMade() as made:
        parts = run("generation", model, model, 16)
    assert rows_of_logits(made) == 3
    assert parts.ids == whole.ids


@pytest.mark.parametrize("lens", ["patchscope from another model", "attribution", "evaluation"])
def test_what_is_made_does_not_grow_with_the_prompts(
    lens: str, standardized: Standardized, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times the prompts, in batches of the same size: no larger tensor (results of these few are smaller)."""
    monkeypatch.setattr("interp.lenses.sources._AT_ONCE", 8)
    monkeypatch.setattr("interp.batching.CPU_ELEMENTS", 1 << 15)
    model, other = standardized("gemma2"), standardized("llama")
    run(lens, model, other, 8)
    largest = []
    for count in (64, 256):
        with TensorsMade() as made:
            run(lens, model, other, count)
        largest.append(made.largest)
    assert largest[1] <= 1.1 * largest[0]

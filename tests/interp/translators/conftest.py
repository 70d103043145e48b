"""The demo model, text for it, and sequences for the tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from interp.model import StandardizedTransformer
from interp.translators import GivenSequences, TokenSequence
from pipeline.demo.curriculum import Recipe, evaluation_prompts, split_combinations, training_prompts
from pipeline.demo.lexicon import load_lexicon
from tests.tiny import VOCABULARY_SIZE

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def demo() -> StandardizedTransformer:
    return StandardizedTransformer(ROOT / "pipeline" / "demo" / "model")


@pytest.fixture(scope="session")
def demo_text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What the demo model can predict: text to train on, and text with combinations that it was never shown."""
    lexicon, recipe = load_lexicon(), Recipe()
    training, held_out = split_combinations(lexicon, recipe.seed)
    prompts = [prompt for step in range(3000, 3015) for prompt in training_prompts(lexicon, training, recipe, step)]
    folder = tmp_path_factory.mktemp("text")
    files = folder / "train.jsonl", folder / "held_out.jsonl"
    for file, texts in zip(files, (prompts, evaluation_prompts(lexicon, training, held_out[:40], 7)), strict=True):
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return files


def random_sequences(lengths: tuple[int, ...] = (9, 5, 12, 7), *, repeat: bool = False) -> GivenSequences:
    """Sequences of different lengths for the tiny models, the same at every call; two bytes a token."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, VOCABULARY_SIZE, (length,), generator=generator).tolist() for length in lengths]
    return GivenSequences([TokenSequence(tuple(row), (0, *[2] * (len(row) - 1))) for row in ids], repeat=repeat)

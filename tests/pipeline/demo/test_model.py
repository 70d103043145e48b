"""The model that the repository carries: what its card says of it is true."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.demo import train as demo
from pipeline.demo.curriculum import Recipe, train_tokenizer
from pipeline.demo.lexicon import load_lexicon

FOLDER = Path(demo.__file__).parent / "model"


@pytest.fixture(scope="module")
def card() -> dict:
    """The head of the model card."""
    return yaml.safe_load((FOLDER / "README.md").read_text(encoding="utf-8").split("---")[1])


def test_folder_is_small_and_safe() -> None:
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert set(files) == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert sum(files.values()) < 10e6


def test_held_out_accuracy_is_what_the_card_says(card: dict) -> None:
    torch.set_num_threads(1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    accuracy = demo.held_out_accuracy(model, tokenizer, load_lexicon(), card["held_out"]["seed"])
    assert accuracy == pytest.approx(card["held_out"]["accuracy"], abs=0.01)
    assert accuracy >= 0.9


def test_the_script_makes_this_model(card: dict) -> None:
    recipe = Recipe()
    assert (card["held_out"]["steps"], card["held_out"]["seed"]) == (recipe.steps, recipe.seed)
    trained = AutoModelForCausalLM.from_pretrained(FOLDER)
    tokenizer = train_tokenizer(load_lexicon(), recipe.vocab_size)
    untrained = demo.new_model(tokenizer, recipe)
    assert {n: w.shape for n, w in trained.named_parameters()} == {n: w.shape for n, w in untrained.named_parameters()}
    assert trained.config.layer_types == untrained.config.layer_types
    assert trained.config.sliding_window == untrained.config.sliding_window == 2
    assert AutoTokenizer.from_pretrained(FOLDER).get_vocab() == tokenizer.get_vocab()

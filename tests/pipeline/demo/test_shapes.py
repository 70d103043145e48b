"""The embedded images and the model that names their colours and shapes: what is said of them is true."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForImageTextToText

from interp.model.processor import load_processor
from interp.prompts.images import opened
from pipeline.demo import shapes, train_shapes
from pipeline.demo.shapes import COLOURS, SHAPES, draw, draw_scene
from pipeline.demo.train_shapes import (
    Recipe,
    accuracy_of,
    draw_prompt,
    draw_words,
    held_out,
    inputs_of,
    make_processor,
    new_model,
)

SMALL = Recipe(
    steps=2,
    batch_size=4,
    hidden_size=16,
    intermediate_size=16,
    layers=2,
    sliding_layers=1,
    vision_size=16,
    vision_layers=1,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def card() -> dict:
    """The head of the model card."""
    head: dict = yaml.safe_load((train_shapes.FOLDER / "README.md").read_text(encoding="utf-8").split("---")[1])
    return head


def test_the_images_are_those_of_the_recipe(tmp_path: Path) -> None:
    shapes.write_folder(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {file.name for file in shapes.FOLDER.iterdir()} and len(names) == 25
    assert (tmp_path / "metadata.jsonl").read_text() == (shapes.FOLDER / "metadata.jsonl").read_text()
    for name in names - {"metadata.jsonl"}:
        np.testing.assert_array_equal(Image.open(tmp_path / name), Image.open(shapes.FOLDER / name))


def test_an_image_shows_what_its_row_says() -> None:
    for line in (shapes.FOLDER / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        pixels = np.asarray(opened(shapes.FOLDER / row["file_name"])).reshape(-1, 3).astype(int)
        colour, shape = (row["answer"], row["other"]) if row["asked"] == "colour" else (row["other"], row["answer"])
        assert colour in COLOURS and shape in SHAPES
        plain = [name for name, value in COLOURS.items() if (np.abs(pixels - value).sum(axis=1) == 0).any()]
        assert plain == [colour]
        assert row["prompt"] == f"<image>\nWhat {row['asked']} is it? Answer:"


def test_questions_have_the_answers_of_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = []
    monkeypatch.setattr(train_shapes, "draw_scene", lambda draws: scenes.append(draw_scene(draws)) or scenes[-1])
    asked = draw_prompt(random.Random(1), 2)
    answers = dict(zip(asked.parts[::2], asked.parts[1::2], strict=True))
    [scene] = scenes
    assert {question.removeprefix("<image>"): answer for question, answer in answers.items()} == {
        "\nWhat colour is it? Answer:": f" {scene.colour}", "\nWhat shape is it? Answer:": f" {scene.shape}",
    }  # fmt: skip
    np.testing.assert_array_equal(asked.images[0], draw(scene))


def test_words_are_repeated() -> None:
    asked = draw_words(random.Random(1), 6)
    lines = [line.split(" ") for line in "".join(asked.parts).split("\n")]
    assert len(lines) == 6 and all(first == second for first, second in lines) and not asked.images
    assert {word for word, _ in lines} <= {*COLOURS, *SHAPES}


def test_a_pass_is_fed_what_the_processor_makes() -> None:
    processor = make_processor(SMALL)
    asked = [draw_prompt(random.Random(2), 1), draw_prompt(random.Random(3), 2)]
    batch, labels = inputs_of(processor, asked)
    for row, one in enumerate(asked):
        [image] = one.images
        own = processor(text=["".join(one.parts)], images=[[Image.fromarray(image)]], return_tensors="pt")
        kept = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][kept].tolist() == own["input_ids"][0].tolist()
        torch.testing.assert_close(batch["pixel_values"][row : row + 1], own["pixel_values"])
        wanted = [token for token in labels[row].tolist() if token != train_shapes.NOTHING]
        assert processor.tokenizer.decode(wanted) == "".join(one.parts[1::2])


def test_training_writes_a_model_that_loads(tmp_path: Path) -> None:
    accuracy = train_shapes.train(SMALL, tmp_path)
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="float32"), load_processor(tmp_path)
    assert accuracy_of(model, processor, held_out(256)) == pytest.approx(accuracy)
    train_shapes.train(SMALL, tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json", "processor_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_embedded_model_is_what_its_card_says(card: dict) -> None:
    files = {file.name: file.stat().st_size for file in train_shapes.FOLDER.iterdir()}
    assert sum(files.values()) < 1.5e6
    embedded = [path.stat().st_size for path in Path(shapes.__file__).parent.rglob("*") if path.suffix != ".pyc"]
    assert sum(embedded) < 10e6
    recipe = Recipe()
    assert (card["held_out"]["steps"], card["held_out"]["seed"]) == (recipe.steps, recipe.seed)
    model = AutoModelForImageTextToText.from_pretrained(train_shapes.FOLDER, dtype="float32")
    processor = load_processor(train_shapes.FOLDER)
    untrained = new_model(recipe, make_processor(recipe))
    assert {n: w.shape for n, w in model.named_parameters()} == {n: w.shape for n, w in untrained.named_parameters()}
    assert processor.tokenizer.get_vocab() == make_processor(recipe).tokenizer.get_vocab()
    assert accuracy_of(model, processor, held_out(256)) == pytest.approx(card["held_out"]["accuracy"], abs=0.01)
    assert card["held_out"]["accuracy"] > 0.9


def test_another_seed_draws_others() -> None:
    assert draw_scene(random.Random(1)) != draw_scene(random.Random(2))
    first, second = (new_model(replace(SMALL, seed=seed), make_processor(SMALL)) for seed in (0, 1))
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)

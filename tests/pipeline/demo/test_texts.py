"""The embedded texts: what maps are fitted to is of the model's training, what is measured is not."""

from __future__ import annotations

import json
import random
from pathlib import Path

from pipeline.demo.curriculum import Recipe, evaluation_prompts, prompt_line, split_combinations, training_prompts
from pipeline.demo.lexicon import load_lexicon
from pipeline.project import CODE

DEMO = CODE / "pipeline" / "demo"


def lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_text_is_what_the_last_steps_of_training_showed() -> None:
    lexicon, recipe = load_lexicon(), Recipe()
    training, _ = split_combinations(lexicon, recipe.seed)
    steps = range(recipe.steps - 10, recipe.steps)
    wanted = [prompt for step in steps for prompt in training_prompts(lexicon, training, recipe, step)]
    assert [line["text"] for line in lines(DEMO / "text.jsonl")] == wanted


def test_unseen_questions_are_in_no_text() -> None:
    lexicon, recipe = load_lexicon(), Recipe()
    training, held_out = split_combinations(lexicon, recipe.seed)
    asked = random.Random("unseen").sample(held_out, 120)
    prompts = evaluation_prompts(lexicon, training, asked, recipe.seed)
    answers = [lexicon.concepts[question.concept].words[question.target][0] for question in asked]
    found = lines(DEMO / "unseen.jsonl")
    assert found == [{"prompt": p, "target": answer} for p, answer in zip(prompts, answers, strict=True)]
    text = {line for row in lines(DEMO / "text.jsonl") for line in row["text"].splitlines()}
    assert not text & {prompt_line(lexicon, question, answered=True) for question in asked}

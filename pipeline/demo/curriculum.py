"""What the embedded model is shown and asked: few-shot translation prompts, and the tenth that it is never shown."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.demo.lexicon import Lexicon
from pipeline.demo.recipe import Recipe

LINES_PER_PROMPT = 6
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Combination:
    """One thing to know: a concept, said in one language, asked in another.

    Arguments:
        concept: the index of the concept in the lexicon.
        source: code of the language of the query word.
        target: code of the language of the answer.
    """

    concept: int
    source: str
    target: str


def split_combinations(lexicon: Lexicon, seed: int) -> tuple[list[Combination], list[Combination]]:
    """Divides all (concept, ordered pair of languages) combinations.

    Arguments:
        lexicon: the concepts and languages.
        seed: decides the division.

    Returns:
        The combinations to train on, and the tenth of all that training never shows.
    """
    combinations = [
        Combination(concept, source, target)
        for source, target in itertools.permutations(lexicon.languages, 2)
        for concept in range(len(lexicon.concepts))
    ]
    held_out = set(random.Random(f"held out {seed}").sample(combinations, round(HELD_OUT_SHARE * len(combinations))))
    return [c for c in combinations if c not in held_out], [c for c in combinations if c in held_out]


def prompt_line(lexicon: Lexicon, combination: Combination, *, answered: bool) -> str:
    """One line of a prompt, with the best word of the concept in each language.

    Arguments:
        lexicon: the concepts and languages.
        combination: what the line asks.
        answered: whether the line goes on after the quote that opens the answer.

    Returns:
        `Deutsch: "Buch" - Italiano: "libro"` or, unanswered, `Deutsch: "Buch" - Italiano: "`.
    """
    words = lexicon.concepts[combination.concept].words
    source, target = combination.source, combination.target
    question = f'{lexicon.languages[source]}: "{words[source][0]}" - {lexicon.languages[target]}: "'
    return question + f'{words[target][0]}"' if answered else question


def training_prompts(lexicon: Lexicon, training: Sequence[Combination], recipe: Recipe, step: int) -> list[str]:
    """The prompts of one step: six different concepts each, in one pair of languages or each in its own.

    Arguments:
        lexicon: the concepts and languages.
        training: the combinations to draw from.
        recipe: its `seed`, `batch_size`, `mixed_share` and the growth of the concepts are used.
        step: the step; with the seed it decides the prompts, so that a resumed training sees the same ones.

    Returns:
        `batch_size` prompts.
    """
    generator = random.Random(f"prompts {recipe.seed} {step}")
    concepts = _concepts(lexicon, recipe, step)
    usable = [combination for combination in training if combination.concept in concepts]
    by_pair, by_concept = _by_pair(usable), _by_concept(usable)
    prompts = []
    for number in range(recipe.batch_size):
        if number < recipe.mixed_share * recipe.batch_size:
            drawn = [generator.choice(by_concept[c]) for c in generator.sample(sorted(by_concept), LINES_PER_PROMPT)]
        else:
            drawn = generator.sample(by_pair[generator.choice(list(by_pair))], LINES_PER_PROMPT)
        prompts.append("\n".join(prompt_line(lexicon, combination, answered=True) for combination in drawn))
    return prompts


def _concepts(lexicon: Lexicon, recipe: Recipe, step: int) -> set[int]:
    """The concepts that the prompts of a step are about."""
    order = list(range(len(lexicon.concepts)))
    random.Random(f"concepts {recipe.seed}").shuffle(order)
    grown = (step - recipe.grow_from) / (recipe.grow_to - recipe.grow_from)
    number = recipe.first_concepts + (len(order) - recipe.first_concepts) * min(1.0, max(0.0, grown))
    return set(order[: int(number)])


def evaluation_prompts(
    lexicon: Lexicon, training: Sequence[Combination], questions: Sequence[Combination], seed: int
) -> list[str]:
    """A prompt for each question, after five answered lines that training has seen, in the same languages.

    Arguments:
        lexicon: the concepts and languages.
        training: the combinations to draw the answered lines from.
        questions: the combinations to ask.
        seed: decides the draw.

    Returns:
        One prompt for each question, ending in the quote that opens the answer.
    """
    generator = random.Random(f"evaluation {seed}")
    by_pair = _by_pair(training)
    prompts = []
    for question in questions:
        others = [c for c in by_pair[question.source, question.target] if c.concept != question.concept]
        shots = generator.sample(others, LINES_PER_PROMPT - 1)
        lines = [prompt_line(lexicon, shot, answered=True) for shot in shots]
        prompts.append("\n".join([*lines, prompt_line(lexicon, question, answered=False)]))
    return prompts


def _by_pair(combinations: Sequence[Combination]) -> dict[tuple[str, str], list[Combination]]:
    by_pair: dict[tuple[str, str], list[Combination]] = {}
    for combination in combinations:
        by_pair.setdefault((combination.source, combination.target), []).append(combination)
    return by_pair


def _by_concept(combinations: Sequence[Combination]) -> dict[int, list[Combination]]:
    by_concept: dict[int, list[Combination]] = {}
    for combination in combinations:
        by_concept.setdefault(combination.concept, []).append(combination)
    return by_concept

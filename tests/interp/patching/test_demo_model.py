"""On the embedded model, patching says what the lenses say: the language is read first, then the concept comes.

Prompts are pairs of translations into different languages of different words, or in which one of the two differs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from interp import StandardizedTransformer
from interp.lenses import logit_lens, patchscope_lens
from interp.patching import activation_patching, attribution_patching
from interp.prompts import Prompt, answer_tokens, translation_prompt
from pipeline.demo.lexicon import Concept, load_lexicon

CONCEPT_COMES = 4  # the first layer whose last token holds the concept


@cache
def model() -> StandardizedTransformer:
    return StandardizedTransformer("pipeline/demo/model")


def prompt(source: str, target: str, shots: list[Concept], asked: Concept) -> Prompt:
    names = load_lexicon().languages
    pairs = [(one.words[source][0], one.words[target][0]) for one in shots]
    return translation_prompt(pairs, asked.words[source][0], names[source], names[target])


@cache
def questions() -> list[tuple[list[Concept], Concept, Concept]]:
    """Shots and two words, each one token after a quote, whose answers begin differently."""
    encode = model().tokenizer.encode

    def is_plain(concept: Concept) -> bool:
        words = [concept.words[code][0] for code in ("de", "fr", "it", "es")]
        return all(len(encode(f'"{word}', add_special_tokens=False)) == 2 for word in words)

    plain = [concept for concept in load_lexicon().concepts if is_plain(concept)]
    draw, found = random.Random(0), []
    while len(found) < 16:
        *shots, one, other = draw.sample(plain, 6)
        firsts = [first_tokens(concept, code) for concept in (one, other) for code in ("it", "es")]
        if len(set.union(*map(set, firsts))) == sum(map(len, firsts)):
            found.append((shots, one, other))
    return found


def first_tokens(concept: Concept, code: str) -> list[int]:
    return list(answer_tokens(model().tokenizer, list(concept.words[code]), "first_token"))


def probability(groups: list[list[int]]) -> Callable[[Tensor, Tensor], Tensor]:
    """The metric of a group of tokens for each example."""

    def metric(logits: Tensor, examples: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        return torch.stack([probabilities[row, groups[example]].sum() for row, example in enumerate(examples.tolist())])

    return metric


def test_language_and_concept_switch_where_patchscope_and_logit_lens_say() -> None:
    """A German-to-Italian prompt's last token in a French-to-Spanish prompt about another word (Dumas et al. 2025)."""
    sources = [prompt("de", "it", shots, one) for shots, one, _ in questions()]
    targets = [prompt("fr", "es", shots, other) for shots, _, other in questions()]
    groups = [
        [first_tokens(other, "es"), first_tokens(other, "it"), first_tokens(one, "it")] for _, one, other in questions()
    ]
    names = ("target concept, es", "target concept, it", "source concept, it")
    metrics = {name: probability([own[index] for own in groups]) for index, name in enumerate(names)}
    patched = activation_patching(model(), sources, targets, "resid_post", "last", metric=metrics).patched[:, :, 0]
    lens = patchscope_lens(model(), sources, targets, targets=groups)
    np.testing.assert_allclose(patched, np.exp(lens.log_prob), atol=1e-4)  # (example, layer, group)
    mean = patched.mean(axis=0)
    says = mean.argmax(axis=1)  # which of the three, by layer
    language, concept = int(np.argmax(says > 0)), int(np.argmax(says == 2))
    assert says[0] == 0 and 0 < language < concept == CONCEPT_COMES
    assert sorted(says.tolist()) == says.tolist()  # once switched, it stays
    # The logit lens reads the answer at the source prompt's last token from there on, and not before.
    read = np.exp(logit_lens(model(), sources, [own[2:] for own in groups]).log_prob[..., 0]).mean(axis=0)
    assert read[:CONCEPT_COMES].max() < 0.1 and read[-1] > 0.9
    assert int(np.argmax(read > 0.5)) >= CONCEPT_COMES


def test_causal_tracing_follows_the_concept_from_its_word_to_the_last_token() -> None:
    """Of two prompts with other words, the one's word is put into the other at one token and layer at a time."""
    clean = [prompt("de", "it", shots, one) for shots, one, _ in questions()]
    corrupted = [prompt("de", "it", shots, other) for shots, _, other in questions()]
    answers = [(first_tokens(one, "it"), first_tokens(other, "it")) for _, one, other in questions()]
    given = {"positions": ["query.last", "last"], "answers": answers}
    recovery = activation_patching(model(), clean, corrupted, "resid_post", **given).recovery.mean(axis=0)[..., 0]
    at_word, at_last = recovery.T
    before, there = slice(0, CONCEPT_COMES - 1), slice(CONCEPT_COMES, None)
    assert at_word[before].min() > 0.8 and at_last[before].max() < 0.2
    assert at_word[there].max() < 0.2 and at_last[there].min() > 0.8
    # Attention to the word in that layer brings it; its output there is what gradients point at too.
    moved = activation_patching(model(), clean, corrupted, "attn_out", "last", answers=answers).recovery
    assert moved.mean(axis=0)[:, 0, 0].argmax() == CONCEPT_COMES
    pointed = attribution_patching(model(), clean, corrupted, "attn_out", "last", answers=answers, steps=5).recovery
    assert pointed.mean(axis=0)[:, 0, 0].argmax() == CONCEPT_COMES


def test_the_language_is_at_the_last_token_before_the_concept() -> None:
    """Of two prompts about one word that ask for two languages, the last token alone decides, from a lower layer on."""
    clean = [prompt("de", "it", shots, one) for shots, one, _ in questions()]
    corrupted = [prompt("de", "es", shots, one) for shots, one, _ in questions()]
    answers = [(first_tokens(one, "it"), first_tokens(one, "es")) for _, one, _ in questions()]
    result = activation_patching(model(), clean, corrupted, "resid_post", "last", answers=answers)
    recovery = result.recovery.mean(axis=0)[:, 0, 0]
    assert recovery[0] < 0.5 and recovery[1:CONCEPT_COMES].min() > 0.5 and recovery[CONCEPT_COMES:].min() > 0.9

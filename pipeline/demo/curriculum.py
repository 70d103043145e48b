"""Define the embedded model's training: recipe, tokenizer, few-shot translation prompts, a tenth of them held out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from pipeline.demo.lexicon import Lexicon

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


@dataclass(frozen=True)
class Recipe:
    """What decides the trained weights, together with the lexicon.

    Arguments:
        steps: optimizer steps.
        seed: of the held-out split, the prompts and the initial weights.
        batch_size: prompts in a step.
        mixed_share: share of the prompts in which each line has a pair of languages of its own.
        first_concepts: how many concepts the first prompts are about.
        grow_from, grow_to: steps between which that number grows to all of them. What is done with a word is learned in
            a few hundred steps on twenty concepts, and in thousands on two hundred.
        learning_rate: the highest of the schedule.
        embedding_learning_rate: how many times as fast embedding and unembedding learn.
        warmup_steps: steps over which the learning rate rises to its highest.
        weight_decay: of AdamW.
        layers: decoder layers.
        sliding_layers: how many of them, from the first, attend only to the current and the previous token.
        hidden_size: width of the residual stream.
        intermediate_size: neurons of an MLP.
        heads: attention heads of a layer.
        vocab_size: entries of the tokenizer; at this size most words are one token, most others two.
        initializer_range: standard deviation of the initial weights.
    """

    steps: int = 1300
    seed: int = 3
    batch_size: int = 24
    mixed_share: float = 0.5
    first_concepts: int = 20
    grow_from: int = 200
    grow_to: int = 800
    learning_rate: float = 2e-3
    embedding_learning_rate: float = 2.0
    warmup_steps: int = 50
    weight_decay: float = 0.05
    layers: int = 8
    sliding_layers: int = 3
    hidden_size: int = 128
    intermediate_size: int = 320
    heads: int = 4
    vocab_size: int = 1900
    initializer_range: float = 0.06


PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def train_tokenizer(lexicon: Lexicon, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which most words of the lexicon are one token after a quote.

    Arguments:
        lexicon: the words to learn the merges from.
        vocab_size: entries at most.

    Returns:
        The tokenizer; it puts `<s>` before a text by itself and pads on the left.
    """
    # Every pair of languages, so that their names are merged both at the start of a line and after a space.
    corpus = [
        prompt_line(lexicon, Combination(concept, source, target), answered=True) + "\n"
        for concept in range(len(lexicon.concepts))
        for source, target in itertools.permutations(lexicon.languages, 2)
    ]
    # The accepted words that no prompt shows count among the answers too.
    corpus += [f': "{word}"' for concept in lexicon.concepts for words in concept.words.values() for word in words]

    # AutoTokenizer reads the tokenizer of a Qwen2 folder with these parts whatever the folder says: they are ours too.
    parts = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer, bpe.decoder = parts.normalizer, parts.pre_tokenizer, parts.decoder
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # any text can be written, if only byte by byte
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,  # never used, since bytes write everything; but without it AutoTokenizer adds a token of its own
        padding_side="left",
        model_max_length=512,
    )

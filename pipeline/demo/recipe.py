"""What decides the weights of the embedded model, together with the lexicon."""

from __future__ import annotations

from dataclasses import dataclass


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

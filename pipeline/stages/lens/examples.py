"""What a configured lens is run on: its examples, from `tokens/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.errors import InterpError
from interp.positions import Position
from interp.prompts import encode, identity_prompt
from pipeline.artifacts.tokens import Pair, Row, Tokens
from pipeline.config.lens_base import IntoTarget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Examples", "every_prompt", "patched_examples"]


@dataclass(frozen=True)
class Examples:
    """The examples of one lens, in the order in which they are stored.

    Arguments:
        dataset: `prompts` or `pairs`, where the examples come from.
        rows: row of each example there.
        sources: per example: the rows of `prompts` whose latents it reads; several are averaged.
        groups: names of the token groups.
        answers: per example, per group: token ids.
        words: per example, per group: the accepted words.
        target_ids: per example: its target prompt; none for a logit lens.
        target_positions: per example: the token that is written.
    """

    dataset: str
    rows: list[int]
    sources: list[list[int]]
    groups: list[str]
    answers: list[list[Sequence[int]]]
    words: list[list[Sequence[str]]]
    target_ids: list[Sequence[int]]
    target_positions: list[int]


def patched_examples(name: str, config: IntoTarget, tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> Examples:
    """The examples of a patchscope: the pairs, or with the identity prompt every prompt.

    Arguments:
        name: of the lens, for messages.
        config: its config.
        tokens: the artifact of the stage `tokenize`.
        tokenizer: of the model, for the identity prompt.

    Raises:
        InterpError: there is nothing to run on, or a target position that is not one token of the
            target prompt.
    """
    if config.target == "task":
        return _from_pairs(name, config, tokens)
    if config.sources == "mean":
        raise InterpError(
            f"lens.{name}: sources=mean needs target=task, whose pairs have several sources; with target=identity "
            "every prompt is its own example. Set sources=first."
        )
    ids = encode(tokenizer, identity_prompt(config.target_prompt)).input_ids
    return every_prompt(name, tokens, (ids, _one_position(name, config.target_position, Row("", ids), "the prompt")))


def every_prompt(name: str, tokens: Tokens, target: tuple[Sequence[int], int] | None = None) -> Examples:
    """Every prompt but those whose groups share a token (label `collides`), where one probability would be another.

    Arguments:
        name: of the lens, for messages.
        tokens: the artifact of the stage `tokenize`.
        target: token ids of the prompt that all are patched into, and the token that is written; None: none.

    Raises:
        InterpError: no prompt is left.
    """
    kept = [row for row, prompt in enumerate(tokens.prompts) if prompt.labels.get("collides") != "yes"]
    if not kept:
        raise InterpError(
            f"lens.{name}: no prompt is left: the token groups of all {len(tokens.prompts)} prompts share a token. "
            "Choose languages, concepts or a target_policy whose words begin with different tokens."
        )
    prompts = [tokens.prompts[row] for row in kept]
    groups, answers = _groups(prompts)
    return Examples(
        dataset="prompts",
        rows=kept,
        sources=[[row] for row in kept],
        groups=groups,
        answers=answers,
        words=_words(prompts, groups),
        target_ids=[target[0]] * len(kept) if target else [],
        target_positions=[target[1]] * len(kept) if target else [],
    )


def _from_pairs(name: str, config: IntoTarget, tokens: Tokens) -> Examples:
    if not tokens.pairs:
        raise InterpError(
            f"lens.{name}: target=task patches into the task's own target prompts, and tokens/ holds no pair. Set "
            f"task.patch_into (translation), or lens.{name}.target=identity."
        )
    groups, answers = _groups(tokens.pairs)
    targets = [tokens.targets[pair.target] for pair in tokens.pairs]
    return Examples(
        dataset="pairs",
        rows=list(range(len(tokens.pairs))),
        sources=[list(pair.sources[:1] if config.sources == "first" else pair.sources) for pair in tokens.pairs],
        groups=groups,
        answers=answers,
        words=_words(tokens.pairs, groups),
        target_ids=[target.input_ids for target in targets],
        target_positions=[
            _one_position(name, config.target_position, target, f"target prompt {pair.target}")
            for pair, target in zip(tokens.pairs, targets, strict=True)
        ],
    )


def _groups(examples: Sequence[Row | Pair]) -> tuple[list[str], list[list[Sequence[int]]]]:
    """The names of the groups, the same in every example, and the token ids by example and group."""
    groups = list(examples[0].answers)
    for number, example in enumerate(examples):
        if list(example.answers) != groups:
            raise InterpError(
                f"tokens/: expected the groups {groups} in every row, got {list(example.answers)} in row {number}. "
                "Run the stage `tokenize` again."
            )
    return groups, [[example.answers[group] for group in groups] for example in examples]


def _words(examples: Sequence[Row | Pair], groups: Sequence[str]) -> list[list[Sequence[str]]]:
    return [[example.words.get(group, ()) for group in groups] for example in examples]


def _one_position(name: str, text: str, target: Row, what: str) -> int:
    try:
        found = Position.parse(text).resolve(len(target.input_ids), target.spans)
    except InterpError as error:
        raise InterpError(f"lens.{name}.target_position, {what}: {error}") from None
    if len(found) != 1:
        raise InterpError(
            f"lens.{name}.target_position: expected one token, {text!r} names {len(found)} in {what}. "
            "Choose e.g. last or query.last."
        )
    return found[0]

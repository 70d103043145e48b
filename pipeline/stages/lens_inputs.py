"""What a configured lens is run on: its examples from `tokens/`, its hidden states from `activations.zarr`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError, nearest
from interp.positions import Position
from interp.prompts import encode, identity_prompt
from interp.sites import HIDDEN_KINDS
from pipeline.config.lens import LensConfig, LogitLensConfig, PatchscopeConfig
from pipeline.stages.tokens import Pair, Row, Tokens
from pipeline.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Examples", "Latents", "examples_of", "find_last", "find_latents"]


@dataclass(frozen=True)
class Examples:
    """The examples of one lens, in the order in which they are stored.

    Arguments:
        dataset: `prompts` or `pairs`, where the examples come from.
        rows: row of each example there.
        sources: per example: the rows of `prompts` whose latents it reads; several are averaged.
        groups: names of the token groups.
        answers: per example, per group: token ids.
        target_ids: per example: its target prompt; none for a logit lens.
        target_positions: per example: the token that is written.
    """

    dataset: str
    rows: list[int]
    sources: list[list[int]]
    groups: list[str]
    answers: list[list[Sequence[int]]]
    target_ids: list[Sequence[int]]
    target_positions: list[int]


def examples_of(name: str, config: LensConfig, tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> Examples:
    """The examples of a configured lens.

    A logit lens, and a patchscope with the identity prompt, read every prompt, except those whose groups share a token
    (label `collides`): there a probability could not be told from another. A patchscope into the task's own target
    prompts reads the pairs.

    Arguments:
        name: of the lens, for messages.
        config: its config.
        tokens: the artifact of the stage `tokenize`.
        tokenizer: of the model, for the identity prompt.

    Raises:
        InterpError: there is nothing to run on, an unknown option, or a target position that is not one token of the
            target prompt.
    """
    if isinstance(config, LogitLensConfig):
        return _from_prompts(name, tokens, None)
    for option, known in (("target", ("task", "identity")), ("sources", ("first", "mean"))):
        if getattr(config, option) not in known:
            found = getattr(config, option)
            raise InterpError(f"lens.{name}.{option}: unknown {found!r}.{nearest(found, known)}")
    if config.target == "task":
        return _from_pairs(name, config, tokens)
    if config.sources == "mean":
        raise InterpError(
            f"lens.{name}: sources=mean needs target=task, whose pairs have several sources; with target=identity "
            "every prompt is its own example. Set sources=first."
        )
    ids = encode(tokenizer, identity_prompt(config.target_prompt)).input_ids
    return _from_prompts(name, tokens, (ids, _one_position(name, config.target_position, Row("", ids), "the prompt")))


def _from_prompts(name: str, tokens: Tokens, target: tuple[Sequence[int], int] | None) -> Examples:
    kept = [row for row, prompt in enumerate(tokens.prompts) if prompt.labels.get("collides") != "yes"]
    if not kept:
        raise InterpError(
            f"lens.{name}: no prompt is left: the token groups of all {len(tokens.prompts)} prompts share a token. "
            "Choose languages, concepts or a target_policy whose words begin with different tokens."
        )
    groups, answers = _groups([tokens.prompts[row] for row in kept])
    return Examples(
        dataset="prompts",
        rows=kept,
        sources=[[row] for row in kept],
        groups=groups,
        answers=answers,
        target_ids=[target[0]] * len(kept) if target else [],
        target_positions=[target[1]] * len(kept) if target else [],
    )


def _from_pairs(name: str, config: PatchscopeConfig, tokens: Tokens) -> Examples:
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


@dataclass(frozen=True)
class Latents:
    """Hidden states of one kind of site at one position, read from the store as they are needed.

    Arguments:
        store: `activations.zarr`.
        kind: kind of site.
        layers: the layers that are read, ascending.
        position: index along the store's position axis.
    """

    store: Store
    kind: str
    layers: tuple[int, ...]
    position: int

    def read(self, sources: Sequence[Sequence[int]]) -> Tensor:
        """The latents of some examples, averaged over the sources of each.

        Arguments:
            sources: per example: rows of `prompts`, at least one.

        Returns:
            (layer, example, hidden) float32.
        """
        rows = sorted({row for example in sources for row in example})
        held: list[int] = self.store.attributes["sites"][self.kind]
        wanted = [held.index(layer) for layer in self.layers]
        values = self.store.read(self.kind, layer=wanted, prompt=rows, position=self.position)
        states = torch.from_numpy(values.astype(np.float32))  # (layer, row, hidden)
        place = {row: index for index, row in enumerate(rows)}
        return torch.stack([states[:, [place[row] for row in example]].mean(dim=1) for example in sources], dim=1)


def find_latents(
    name: str, store: Store, kind: str, position: str, layers: Sequence[int], sources: Sequence[Sequence[int]]
) -> Latents:
    """Find a lens's hidden states in the store.

    Arguments:
        name: of the lens, for messages.
        store: `activations.zarr`.
        kind: kind of site.
        position: one of the store's position names.
        layers: layers that are needed.
        sources: per example: rows of `prompts` that are needed.

    Raises:
        InterpError: the kind, the position or a layer was not collected, or a prompt has no token at the position.
    """
    sites: dict[str, list[int | None]] = store.attributes["sites"]
    names: list[str] = store.attributes["position_names"]
    if kind not in HIDDEN_KINDS:
        raise InterpError(
            f"lens.{name}.site: expected a kind of site that every layer has, got {kind!r}."
            f"{nearest(kind, HIDDEN_KINDS)} A lens reads hidden states (batch, position, hidden)."
        )
    if kind not in sites:
        raise InterpError(
            f"lens.{name}.site: {kind!r} was not collected.{nearest(kind, sites)} Add '{kind}.*' to collect.sites."
        )
    if position not in names:
        raise InterpError(
            f"lens.{name}: position {position!r} was not collected.{nearest(position, names)} "
            "Add it to collect.positions."
        )
    missing = [layer for layer in layers if layer not in sites[kind]]
    if missing:
        raise InterpError(
            f"lens.{name}: needs {kind} of layers {missing}, which were not collected; there are layers {sites[kind]}. "
            f"Choose lens.{name}.layers among them, or set collect.sites to '{kind}.*'."
        )
    found = Latents(store, kind, tuple(layers), names.index(position))
    resolved = store.static("positions")[:, found.position]
    absent = sorted({row for example in sources for row in example if resolved[row] < 0})
    if absent:
        raise InterpError(
            f"lens.{name}: position {position!r}: prompt {absent[0]} has no such token ({len(absent)} prompts have "
            "none). Choose a position that every prompt has, e.g. last."
        )
    return found


def find_last(store: Store, position: str, num_layers: int) -> Latents | None:
    """The residual stream after the last layer at a position, from which the model's own output follows.

    Returns:
        None where it was not collected.
    """
    last = num_layers - 1
    if position not in store.attributes["position_names"] or last not in store.attributes["sites"].get(
        "resid_post", []
    ):
        return None
    return Latents(store, "resid_post", (last,), store.attributes["position_names"].index(position))

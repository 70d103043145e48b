"""What a lens is given: artifacts and model, its examples, and from them its states and what these are mapped by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError, nearest
from interp.lenses import Latents
from interp.model import StandardizedTransformer
from interp.positions import Position
from interp.prompts import encode, identity_prompt
from interp.sites import HIDDEN_KINDS, parse_layers
from interp.translators import LatentMap, TunedLens
from interp.translators.affine_maps import AffineMap, AffinePairs
from pipeline.artifacts.affine_maps import load_affine
from pipeline.artifacts.tokens import Pair, Row, Tokens
from pipeline.config.lens_base import IntoTarget, LensConfig, Reads
from pipeline.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TUNED_LENS",
    "Examples",
    "Inputs",
    "Mapping",
    "StoredLatents",
    "evenly",
    "every_prompt",
    "find_last",
    "find_latents",
    "find_mapping",
    "latents_of",
    "layers_of",
    "needed_layers",
    "patched_examples",
]


@dataclass(frozen=True)
class Inputs:
    """What all lenses of a run share.

    Arguments:
        tokens: the artifact `tokens/`.
        activations: the artifact `activations.zarr`.
        model: the model.
        remote: whether it runs on NDIF.
    """

    tokens: Tokens
    activations: Store
    model: StandardizedTransformer
    remote: bool = False


def latents_of(
    name: str, config: LensConfig, inputs: Inputs, examples: Examples, needed: Sequence[int]
) -> StoredLatents:
    """The collected states that a lens reads.

    Arguments:
        name: of the lens, for messages.
        config: its config.
        inputs: of the run.
        examples: what it is run on.
        needed: the layers whose states it reads, ascending.

    Raises:
        InterpError: see `find_latents`.
    """
    reads = _reads(config)
    return find_latents(name, inputs.activations, reads.site, reads.position, needed, examples.sources)


def needed_layers(config: LensConfig, layers: list[int], num_layers: int) -> list[int]:
    """The layers whose states a lens reads, ascending.

    Arguments:
        config: of the lens.
        layers: that its option names, ascending.
        num_layers: of the model.
    """
    return _reads(config).needed(layers, num_layers)


def _reads(config: LensConfig) -> Reads:
    reads = config.reads()
    assert reads is not None, f"a lens of kind {config.kind} reads no states"
    return reads


def layers_of(name: str, key: str, text: str, num_layers: int) -> list[int]:
    """The layers that an option of a lens names.

    Arguments:
        name: of the lens, for messages.
        key: of the option, for messages.
        text: `*`, a range, a list.
        num_layers: of the model.

    Raises:
        InterpError: it cannot be read, or the model has no such layers.
    """
    try:
        return parse_layers(text, num_layers)
    except InterpError as error:
        raise InterpError(f"lens.{name}.{key}: {error}") from None


def evenly(layers: Sequence[int], most: int | None) -> list[int]:
    """Some of the layers: `most` of them, from the first to the last at even distances; None: all."""
    if most is None or len(layers) <= most:
        return list(layers)
    return [layers[round(place)] for place in np.linspace(0, len(layers) - 1, most).tolist()]


@dataclass(frozen=True)
class StoredLatents:
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

    def source(self, sources: Sequence[Sequence[int]], own: StoredLatents | None) -> Latents:
        """The latents of some examples as a lens is given them.

        Arguments:
            sources: as in `read`.
            own: the last residual stream at the same position; None: not known.
        """
        return Latents(self.read(sources), self.layers, None if own is None else own.read(sources)[0])


def find_latents(
    name: str, store: Store, kind: str, position: str, layers: Sequence[int], sources: Sequence[Sequence[int]]
) -> StoredLatents:
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
    found = StoredLatents(store, kind, tuple(layers), names.index(position))
    resolved = store.static("positions")[:, found.position]
    absent = sorted({row for example in sources for row in example if resolved[row] < 0})
    if absent:
        raise InterpError(
            f"lens.{name}: position {position!r}: prompt {absent[0]} has no such token ({len(absent)} prompts have "
            "none). Choose a position that every prompt has, e.g. last."
        )
    return found


def find_last(store: Store, position: str, num_layers: int) -> StoredLatents | None:
    """The residual stream after the last layer at a position, from which the model's own output follows.

    Returns:
        None where it was not collected.
    """
    last = num_layers - 1
    if position not in store.attributes["position_names"] or last not in store.attributes["sites"].get(
        "resid_post", []
    ):
        return None
    return StoredLatents(store, "resid_post", (last,), store.attributes["position_names"].index(position))


TUNED_LENS = "tuned_lens"  # the artifact of the stage `tune`


@dataclass(frozen=True)
class Mapping:
    """A mapping as the lens's config names it.

    Arguments:
        kind: one of `MAPPINGS`.
        to_one: from each source layer to one layer; None: there is none, or it is `pairs`.
        pairs: from each source layer to each target layer; None: it is not `affine_target`.
        told: what the store says of it: `kind`, and what it was made from.
    """

    kind: str
    to_one: LatentMap | None = None
    pairs: AffinePairs | None = None
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def any(self) -> LatentMap | AffinePairs | None:
        """What a grid takes."""
        return self.pairs or self.to_one


def find_mapping(
    name: str,
    config: LensConfig,
    model: StandardizedTransformer,
    layers: Sequence[int],
    target_layers: Sequence[int] | None = None,
) -> Mapping:
    """The mapping of a lens, read from `tuned_lens/`.

    Arguments:
        name: of the lens, for messages.
        config: its config.
        model: the run's.
        layers: the layers whose states it maps.
        target_layers: where a grid writes them; None: the lens is none.

    Raises:
        InterpError: there is no such mapping, it is another model's, or it lacks a layer.
    """
    kind = config.maps()
    if kind == "identity":
        return Mapping(kind, told={"kind": kind})
    if kind == "tuned":
        lens = TunedLens.load(TUNED_LENS, model)
        _check(name, "translator of", "the tuned lens", layers, (*lens.layers, model.num_layers - 1))
        return Mapping(kind, to_one=lens.as_map(), told={"kind": kind, **lens.config()})
    maps, fitted = load_affine(TUNED_LENS, model)
    _check(name, "map from", f"{TUNED_LENS}/", layers, maps.layers)
    told = {"kind": kind, **fitted}
    if kind == "affine_last":
        to_last = maps if isinstance(maps, AffineMap) else maps.to_layer(model.num_layers - 1)
        return Mapping(kind, to_one=to_last, told=told)
    if isinstance(maps, AffineMap) or target_layers is None:
        found = "maps to the last layer alone" if isinstance(maps, AffineMap) else "no target layers to map to"
        raise InterpError(
            f"lens.{name}.mapping: affine_target needs a grid, and maps between all layers; there are {found}. Set "
            "tune.affine=pairs, or choose affine_last."
        )
    _check(name, "map to", f"{TUNED_LENS}/", target_layers, maps.target_layers)
    return Mapping(kind, pairs=maps, told=told)


def _check(name: str, what: str, where: str, layers: Sequence[int], known: Sequence[int]) -> None:
    missing = [layer for layer in layers if layer not in known]
    if missing:
        raise InterpError(
            f"lens.{name}.mapping: {where} has no {what} layers {missing}, only {list(known)}. Choose among them, or "
            "make more (tune.layers, tune.affine_layers)."
        )


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

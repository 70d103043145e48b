"""Kind `patchscope_generate`: what the model writes on after a patch, by layer, or by source and target layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from interp.errors import InterpError
from interp.lenses import Latents, Patch, patchscope_generate
from interp.results import GenerationResult
from pipeline.config.lens import PatchscopeGenerateConfig
from pipeline.stages.lens.base import Arrays, Lens
from pipeline.stages.lens.inputs import (
    Examples,
    Inputs,
    evenly,
    find_mapping,
    latents_of,
    layers_of,
    needed_layers,
    patched_examples,
)
from pipeline.store import StoreWriter

PADDING = -1  # behind the end of a text
UNKNOWN = -1  # whether a text holds an answer that has no words
NO_WORD = "?"  # stands for an answer that has no words; what is found of it is not kept


class PatchscopeGenerate(Lens[PatchscopeGenerateConfig]):
    """Generation on pairs, or on every prompt with an identity prompt.

    Its axes are `layer`, or, with `target_layers`, `source_layer` and `target_layer`. Its store holds token ids and
    whether each text holds a word of each group; the texts are an attribute.

    Raises:
        InterpError: see `patched_examples`, `find_latents` and `find_mapping`; the model has no such layers, or does
            not read texts that long.
    """

    token_arrays = ("token_ids",)

    def __init__(self, name: str, config: PatchscopeGenerateConfig, inputs: Inputs) -> None:
        num_layers = inputs.model.num_layers
        layers = layers_of(name, "layers", config.layers, num_layers)
        targets = None
        if config.target_layers is None:
            axes = {"layer": layers}
            needed = needed_layers(config, layers, num_layers)
        else:
            needed = evenly(layers, config.max_layers)
            targets = evenly(layers_of(name, "target_layers", config.target_layers, num_layers), config.max_layers)
            axes = {"source_layer": needed, "target_layer": targets}
        examples = patched_examples(name, config, inputs.tokens, inputs.model.tokenizer)
        _check_room(name, config, examples, inputs.model.spec.max_positions)
        super().__init__(name, config, inputs, examples, axes)
        self.latents = latents_of(name, config, inputs, examples, needed)
        self.mapping = find_mapping(name, config, inputs.model, needed, targets)

    @property
    def crossed(self) -> bool:
        """Whether each source layer is written into each target layer."""
        return "target_layer" in self.axes

    def attributes(self) -> dict[str, Any]:
        """The attributes of its store that are known before it is computed, and what its mapping was made from."""
        return {**super().attributes(), "mapping": self.mapping.told}

    def lengths(self) -> dict[str, int]:
        """The length of every dimension."""
        return {**super().lengths(), "token": self.config.max_new_tokens}

    def arrays(self) -> Arrays:
        """The new tokens, -1 behind the end; how many; whether the text holds an answer, -1 where it has no words."""
        cell = ("example", *self.axes)
        return {
            "token_ids": ("int32", (*cell, "token")),
            "num_tokens": ("int32", cell),
            "answer_found": ("int8", (*cell, "group")),
        }

    def num_tokens(self, rows: range) -> int:
        """How many tokens a plain way would run for a block: for each text the target prompt, and what follows it."""
        prompts = sum(len(self.examples.target_ids[row]) + self.config.max_new_tokens for row in rows)
        return math.prod(len(layers) for layers in self.axes.values()) * prompts

    def compute(self, rows: range) -> dict[str, NDArray]:
        """The arrays of one block of examples."""
        result = self._crossed(rows) if self.crossed else self._by_layer(rows)
        shape = (len(rows), *(len(layers) for layers in self.axes.values()))
        ids = result.padded_ids()
        ids = ids.reshape(*shape, ids.shape[-1])  # (example, *axes, longest)
        ids = np.pad(ids, [(0, 0)] * len(shape) + [(0, self.config.max_new_tokens - ids.shape[-1])],
                     constant_values=PADDING)  # fmt: skip
        words = self.examples.words[rows.start : rows.stop]
        return {
            "token_ids": ids,
            "num_tokens": (ids != PADDING).sum(-1, dtype=np.int32),
            "answer_found": self._found(result, words).reshape(*shape, len(self.examples.groups)),
        }

    def _by_layer(self, rows: range) -> GenerationResult:
        """[example][layer]."""
        block = slice(rows.start, rows.stop)
        return patchscope_generate(
            self.inputs.model,
            self.latents.source(self.examples.sources[block], None),
            self.examples.target_ids[block],
            [[position] for position in self.examples.target_positions[block]],
            layers=self.axes["layer"],
            max_new_tokens=self.config.max_new_tokens,
            patch=cast(Patch, self.config.patch),
            site=self.config.site,
            mapping=self.mapping.to_one,
            temperature=self.config.temperature,
            seed=self.config.seed,
            example_numbers=rows,
            batch_size=self.config.batch_size,
        )

    def _crossed(self, rows: range) -> GenerationResult:
        """[example and source layer][target layer]: an example counts as one more for each of its source layers."""
        block = slice(rows.start, rows.stop)
        sources, targets = self.axes["source_layer"], self.axes["target_layer"]
        states = self.latents.read(self.examples.sources[block])  # (source layer, example, hidden)
        if self.mapping.pairs is not None:
            by_target = torch.stack([self.mapping.pairs.to_layer(layer)(states, sources) for layer in targets])
        else:
            states = states if self.mapping.to_one is None else self.mapping.to_one(states, sources)
            by_target = states.expand(len(targets), *states.shape)
        depth = self.inputs.model.num_layers
        each = by_target.transpose(1, 2).flatten(1, 2)  # (target layer, example and source layer, hidden)
        return patchscope_generate(
            self.inputs.model,
            Latents(each, targets),
            [ids for ids in self.examples.target_ids[block] for _ in sources],
            [[position] for position in self.examples.target_positions[block] for _ in sources],
            max_new_tokens=self.config.max_new_tokens,
            site=self.config.site,
            temperature=self.config.temperature,
            seed=self.config.seed,
            example_numbers=[row * depth + layer for row in rows for layer in sources],
            batch_size=self.config.batch_size,
        )

    def _found(self, result: GenerationResult, words: Sequence[Sequence[Sequence[str]]]) -> NDArray[np.int8]:
        """(text, layer, group), whether a text holds one of the group's words; -1 where it has none."""
        each = len(result.texts) // max(1, len(words))  # how many texts an example has at a layer
        found = np.full((*result.padded_ids().shape[:2], len(self.examples.groups)), UNKNOWN, dtype=np.int8)
        for group in range(len(self.examples.groups)):
            accepted = [[word for word in own[group] if word.strip()] for own in words for _ in range(each)]
            hits = result.hits([own or [NO_WORD] for own in accepted])  # (text, layer)
            has_words = np.array([bool(own) for own in accepted])[:, None]
            found[..., group] = np.where(has_words, hits, UNKNOWN)
        return found

    def late_attributes(self, writer: StoreWriter) -> dict[str, Any]:
        """`texts`: [example][layer], or [example][source layer][target layer], what the tokens say."""
        width = len(self.axes["target_layer"] if self.crossed else self.axes["layer"])
        texts: list[Sequence[str]] = []
        for block in range(len(writer.blocks)):
            held = writer.read(block, "token_ids")
            ids = [
                [[token for token in row if token != PADDING] for row in by_layer]
                for by_layer in held.reshape(-1, width, held.shape[-1]).tolist()
            ]
            texts += GenerationResult.decoded(range(width), ids, self.inputs.model.tokenizer).texts
        if not self.crossed:
            return {"texts": texts}
        each = len(self.axes["source_layer"])
        return {"texts": [texts[start : start + each] for start in range(0, len(texts), each)]}


def _check_room(name: str, config: PatchscopeGenerateConfig, examples: Examples, most: int | None) -> None:
    """Raise where a text would be longer than the model reads.

    Arguments:
        name: of the lens, for messages.
        config: its config.
        examples: what it is run on.
        most: tokens that the model reads; None: no limit is known.

    Raises:
        InterpError: it would.
    """
    longest = max(map(len, examples.target_ids))
    if most is not None and longest + config.max_new_tokens > most:
        raise InterpError(
            f"lens.{name}.max_new_tokens: {config.max_new_tokens} tokens behind a target prompt of {longest} are more "
            f"than the {most} that the model reads. Set it to at most {most - longest}."
        )

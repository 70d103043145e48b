"""Kind `patchscope_generate`: what the model writes on after a patch, for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from interp.errors import InterpError
from interp.lenses import GenerationResult, Patch, patchscope_generate
from pipeline.config.lens import PatchscopeGenerateConfig
from pipeline.stages.common import digest_of
from pipeline.stages.lenses.base import Arrays, Inputs, Lens, latents_of, layers_of, needed_layers
from pipeline.stages.lenses.examples import Examples, patched_examples
from pipeline.store import StoreWriter

PADDING = -1  # behind the end of a text
UNKNOWN = -1  # whether a text holds an answer that has no words
NO_WORD = "?"  # stands for an answer that has no words; what is found of it is not kept


class PatchscopeGenerate(Lens[PatchscopeGenerateConfig]):
    """Generation on pairs, or on every prompt with an identity prompt.

    Its store holds token ids and whether each text holds a word of each group; the texts are an attribute.

    Raises:
        InterpError: see `patched_examples` and `find_latents`; the model has no such layers, or does not read texts
            that long.
    """

    token_arrays = ("token_ids",)

    def __init__(self, name: str, config: PatchscopeGenerateConfig, inputs: Inputs) -> None:
        layers = layers_of(name, "layers", config.layers, inputs.model.num_layers)
        examples = patched_examples(name, config, inputs.tokens, inputs.model.tokenizer)
        _check_room(name, config, examples, inputs.model.spec.max_positions)
        super().__init__(name, config, inputs, examples, {"layer": layers})
        needed = needed_layers(config, layers, inputs.model.num_layers)
        self.latents = latents_of(name, config, inputs, examples, needed)

    def lengths(self) -> dict[str, int]:
        """The length of every dimension."""
        return {**super().lengths(), "token": self.config.max_new_tokens}

    def arrays(self) -> Arrays:
        """The new tokens, -1 behind the end; how many; whether the text holds an answer, -1 where it has no words."""
        return {
            "token_ids": ("int32", ("example", "layer", "token")),
            "num_tokens": ("int32", ("example", "layer")),
            "answer_found": ("int8", ("example", "layer", "group")),
        }

    def num_tokens(self, rows: range) -> int:
        """How many tokens a plain way would run for a block: for each layer the target prompt, and what follows it."""
        prompts = sum(len(self.examples.target_ids[row]) + self.config.max_new_tokens for row in rows)
        return len(self.axes["layer"]) * prompts

    def compute(self, rows: range) -> dict[str, NDArray]:
        """The arrays of one block of examples."""
        block = slice(rows.start, rows.stop)
        config = self.config
        result = patchscope_generate(
            self.inputs.model,
            self.latents.read(self.examples.sources[block]),
            self.examples.target_ids[block],
            self.examples.target_positions[block],
            layers=self.axes["layer"],
            latent_layers=self.latents.layers,
            max_new_tokens=config.max_new_tokens,
            patch=cast(Patch, config.patch),
            temperature=config.temperature,
            # examples are numbered anew in each block, and must not draw what those of another block draw
            seed=int(digest_of(config.seed, rows.start)[:8], 16),
            batch_size=config.batch_size,
        )
        ids = result.padded_ids()  # (example, layer, longest)
        short = config.max_new_tokens - ids.shape[-1]
        return {
            "token_ids": np.pad(ids, ((0, 0), (0, 0), (0, short)), constant_values=PADDING),
            "num_tokens": (ids != PADDING).sum(-1, dtype=np.int32),
            "answer_found": self._found(result, self.examples.words[block]),
        }

    def _found(self, result: GenerationResult, words: Sequence[Sequence[Sequence[str]]]) -> NDArray[np.int8]:
        """(example, layer, group), whether a text holds one of the group's words; -1 where it has none."""
        found = np.full((len(words), len(self.axes["layer"]), len(self.examples.groups)), UNKNOWN, dtype=np.int8)
        for group in range(len(self.examples.groups)):
            accepted = [[word for word in example[group] if word.strip()] for example in words]
            hits = result.hits([own or [NO_WORD] for own in accepted])  # (example, layer)
            has_words = np.array([bool(own) for own in accepted])[:, None]
            found[..., group] = np.where(has_words, hits, UNKNOWN)
        return found

    def late_attributes(self, writer: StoreWriter) -> dict[str, Any]:
        """`texts`: [example][layer], what the tokens say."""
        texts: list[Sequence[str]] = []
        for block in range(len(writer.blocks)):
            ids = [
                [[token for token in row if token != PADDING] for row in by_layer]
                for by_layer in writer.read(block, "token_ids").tolist()
            ]
            texts += GenerationResult.decoded(self.axes["layer"], ids, self.inputs.model.tokenizer).texts
        return {"texts": texts}


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

"""Kind `patchscope`: collected hidden states, written into target prompts layer by layer."""

from __future__ import annotations

from typing import cast

from numpy.typing import NDArray

from interp.lenses import Patch, patchscope_lens
from pipeline.config.lens import PatchscopeConfig
from pipeline.stages.lenses.base import Arrays, Inputs, ReadingLens, layers_of
from pipeline.stages.lenses.examples import patched_examples
from pipeline.stages.lenses.latents import find_latents


class Patchscope(ReadingLens[PatchscopeConfig]):
    """The patchscope lens on pairs, or on every prompt with an identity prompt.

    Raises:
        InterpError: see `patched_examples` and `find_latents`; or the model has no such layers.
    """

    def __init__(self, name: str, config: PatchscopeConfig, inputs: Inputs) -> None:
        num_layers = inputs.model.num_layers
        layers = layers_of(name, "layers", config.layers, num_layers)
        examples = patched_examples(name, config, inputs.tokens, inputs.model.tokenizer)
        super().__init__(
            name, config, inputs, examples, {"layer": layers}, top_k=config.top_k, batch_size=config.batch_size
        )
        needed = list(range(layers[0], num_layers)) if config.patch == "from_layer" else layers
        self.latents = find_latents(
            name, inputs.activations, config.site, config.source_position, needed, examples.sources
        )
        self.own = self.own_latents(config.source_position)

    def arrays(self) -> Arrays:
        """As those of every reading, and the groups after the unpatched target prompts."""
        return {**super().arrays(), "baseline_target_log_prob": ("float32", ("example", "group"))}

    def num_tokens(self, rows: range) -> int:
        """How many tokens of target prompts a plain way would run for a block: all of them, for each layer."""
        return len(self.axes["layer"]) * sum(len(self.examples.target_ids[row]) for row in rows)

    def compute(self, rows: range) -> dict[str, NDArray]:
        """The arrays of one block of examples."""
        block = slice(rows.start, rows.stop)
        sources = self.examples.sources[block]
        result = patchscope_lens(
            self.inputs.model,
            self.latents.read(sources),
            self.examples.target_ids[block],
            self.examples.target_positions[block],
            self.examples.answers[block],
            layers=self.axes["layer"],
            latent_layers=self.latents.layers,
            patch=cast(Patch, self.config.patch),
            site=self.config.site,
            top_k=self.top_k,
            batch_size=self.batch_size,
            reference=None if self.own is None else self.own.read(sources)[0],
        )
        return self.values(result, rows)

"""Kind `logit_lens`: the model's own readout of the collected residual streams."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from interp.lenses import Latents, logit_lens
from pipeline.config.lens import LogitLensConfig
from pipeline.stages.lens.base import ReadingLens
from pipeline.stages.lens.inputs import Inputs, every_prompt, find_mapping, latents_of, layers_of


class LogitLens(ReadingLens[LogitLensConfig]):
    """The logit lens on every prompt.

    Raises:
        InterpError: see `every_prompt`, `latents_of` and `find_mapping`; or the model has no such layers.
    """

    def __init__(self, name: str, config: LogitLensConfig, inputs: Inputs) -> None:
        layers = layers_of(name, "layers", config.layers, inputs.model.num_layers)
        examples = every_prompt(name, inputs.tokens)
        super().__init__(
            name, config, inputs, examples, {"layer": layers}, top_k=config.top_k, batch_size=config.batch_size
        )
        self.latents = latents_of(name, config, inputs, examples, layers)
        self.own = self.own_latents(config.position)
        self.mapping = find_mapping(name, config, inputs.model, layers)

    def attributes(self) -> dict[str, Any]:
        """The attributes of its store that are known before it is computed, and what its mapping was made from."""
        return {**super().attributes(), "mapping": self.mapping.told}

    def compute(self, rows: range) -> dict[str, NDArray]:
        """The arrays of one block of examples."""
        block = slice(rows.start, rows.stop)
        sources = self.examples.sources[block]
        states = self.latents.read(sources)
        if self.mapping.to_one is not None:
            states = self.mapping.to_one(states, self.latents.layers)
        result = logit_lens(
            self.inputs.model,
            Latents(states, self.axes["layer"], None if self.own is None else self.own.read(sources)[0]),
            self.examples.answers[block],
            top_k=self.top_k,
            batch_size=self.batch_size,
            inverted=self.config.inverted,
            remote=self.inputs.remote,
        )
        return self.values(result, rows)

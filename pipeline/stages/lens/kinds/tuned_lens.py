"""Kind `tuned_lens`: the collected residual streams, translated as each layer has learned, and read out."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from interp.errors import InterpError
from interp.lenses import tuned_lens
from interp.translators import TunedLens
from pipeline.config.lens import TunedLensConfig
from pipeline.stages.lens.base import ReadingLens
from pipeline.stages.lens.inputs import TUNED_LENS, Inputs, every_prompt, latents_of, layers_of


class Tuned(ReadingLens[TunedLensConfig]):
    """The tuned lens on every prompt.

    Raises:
        InterpError: see `every_prompt` and `latents_of`; the model has no such layers, or the tuned lens no translator
            for them; or `tuned_lens/` holds no lens, or another model's.
    """

    def __init__(self, name: str, config: TunedLensConfig, inputs: Inputs) -> None:
        layers = layers_of(name, "layers", config.layers, inputs.model.num_layers)
        self.lens = TunedLens.load(TUNED_LENS, inputs.model)
        absent = [layer for layer in layers if layer not in (*self.lens.layers, inputs.model.num_layers - 1)]
        if absent:
            raise InterpError(
                f"lens.{name}.layers: the tuned lens has no translator of layers {absent}, only of "
                f"{list(self.lens.layers)}. Choose among them (and the last), or train it with more (tune.layers)."
            )
        examples = every_prompt(name, inputs.tokens)
        super().__init__(
            name, config, inputs, examples, {"layer": layers}, top_k=config.top_k, batch_size=config.batch_size
        )
        self.latents = latents_of(name, config, inputs, examples, layers)
        self.own = self.own_latents(config.position)

    def attributes(self) -> dict[str, Any]:
        """The attributes of its store that are known before it is computed, and what the lens was trained on."""
        return {**super().attributes(), "tuned_lens": self.lens.config()}

    def compute(self, rows: range) -> dict[str, NDArray]:
        """The arrays of one block of examples."""
        block = slice(rows.start, rows.stop)
        result = tuned_lens(
            self.inputs.model,
            self.lens,
            self.latents.source(self.examples.sources[block], self.own),
            self.examples.answers[block],
            top_k=self.top_k,
            batch_size=self.batch_size,
        )
        return self.values(result, rows)

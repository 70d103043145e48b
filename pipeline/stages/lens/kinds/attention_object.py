"""Kind `attention_object`: what attention receives at a token, replaced in windows of layers by a source's."""

from __future__ import annotations

from numpy.typing import NDArray

from interp.errors import InterpError
from interp.lenses.attention_object import AttentionWindows, attention_object_lens
from pipeline.config.lens import AttentionObjectConfig
from pipeline.stages.lens.base import PatchedLens
from pipeline.stages.lens.inputs import Inputs, layers_of


class AttentionObject(PatchedLens[AttentionObjectConfig]):
    """The attention-object lens on pairs, or on every prompt with an identity prompt.

    Raises:
        InterpError: see `patched_examples` and `find_latents`; or the model has no such layers.
    """

    def __init__(self, name: str, config: AttentionObjectConfig, inputs: Inputs) -> None:
        layers = layers_of(name, "layers", config.layers, inputs.model.num_layers)
        try:  # layers without attention receive nothing, and have nothing collected
            needed = AttentionWindows.of(inputs.model, layers, config.window).attending
        except InterpError as error:
            raise InterpError(f"lens.{name}.layers: {error}") from None
        super().__init__(name, config, inputs, {"layer": layers}, needed=needed, top_k=config.top_k)

    def compute(self, rows: range) -> dict[str, NDArray]:
        """The arrays of one block of examples."""
        result = attention_object_lens(
            self.inputs.model,
            self.source(rows),
            **self.target(rows),
            window=self.config.window,
            layers=self.axes["layer"],
            top_k=self.top_k,
            batch_size=self.batch_size,
        )
        return self.values(result, rows)

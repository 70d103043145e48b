"""Kind `patchscope_grid`: the residual stream after every source layer, written after every target layer."""

from __future__ import annotations

from numpy.typing import NDArray

from interp.lenses import patchscope_grid
from pipeline.config.lens import PatchscopeGridConfig
from pipeline.stages.lenses.inputs import Inputs, layers_of
from pipeline.stages.lenses.reading import PatchedLens


class PatchscopeGrid(PatchedLens[PatchscopeGridConfig]):
    """The grid on pairs, or on every prompt with an identity prompt.

    Raises:
        InterpError: see `patched_examples` and `find_latents`; or the model has no such layers.
    """

    def __init__(self, name: str, config: PatchscopeGridConfig, inputs: Inputs) -> None:
        num_layers = inputs.model.num_layers
        axes = {
            "source_layer": layers_of(name, "source_layers", config.source_layers, num_layers),
            "target_layer": layers_of(name, "target_layers", config.target_layers, num_layers),
        }
        super().__init__(name, config, inputs, axes, needed=axes["source_layer"], top_k=config.top_k)

    def compute(self, rows: range) -> dict[str, NDArray]:
        """The arrays of one block of examples."""
        block = slice(rows.start, rows.stop)
        result = patchscope_grid(
            self.inputs.model,
            self.latents.read(self.examples.sources[block]),
            self.examples.target_ids[block],
            self.examples.target_positions[block],
            self.examples.answers[block],
            source_layers=self.axes["source_layer"],
            target_layers=self.axes["target_layer"],
            top_k=self.top_k,
            batch_size=self.batch_size,
            reference=self.reference(rows),
        )
        return self.values(result, rows)

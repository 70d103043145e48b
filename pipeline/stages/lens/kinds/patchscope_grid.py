"""Kind `patchscope_grid`: the state of every source layer, written at every target layer."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from interp.lenses import patchscope_grid
from pipeline.config.lens import PatchscopeGridConfig
from pipeline.stages.lens.base import PatchedLens
from pipeline.stages.lens.inputs import Inputs, find_mapping, layers_of


class PatchscopeGrid(PatchedLens[PatchscopeGridConfig]):
    """The grid on pairs, or on every prompt with an identity prompt.

    Raises:
        InterpError: see `patched_examples`, `find_latents` and `find_mapping`; or the model has no such layers.
    """

    def __init__(self, name: str, config: PatchscopeGridConfig, inputs: Inputs) -> None:
        num_layers = inputs.model.num_layers
        axes = {
            "source_layer": layers_of(name, "source_layers", config.source_layers, num_layers),
            "target_layer": layers_of(name, "target_layers", config.target_layers, num_layers),
        }
        super().__init__(name, config, inputs, axes, needed=axes["source_layer"], top_k=config.top_k)
        self.mapping = find_mapping(name, config, inputs.model, axes["source_layer"], axes["target_layer"])

    def attributes(self) -> dict[str, Any]:
        """The attributes of its store that are known before it is computed, and what its mapping was made from."""
        return {**super().attributes(), "mapping": self.mapping.told}

    def compute(self, rows: range) -> dict[str, NDArray]:
        """The arrays of one block of examples."""
        result = patchscope_grid(
            self.inputs.model,
            self.source(rows),
            **self.target(rows),
            source_layers=self.axes["source_layer"],
            target_layers=self.axes["target_layer"],
            site=self.config.site,
            mapping=self.mapping.any,
            top_k=self.top_k,
            batch_size=self.batch_size,
        )
        return self.values(result, rows)

"""Kind `patchscope`: collected hidden states, written into target prompts layer by layer."""

from __future__ import annotations

from typing import Any, cast

from numpy.typing import NDArray

from interp.lenses import Patch, patchscope_lens
from pipeline.config.lens import PatchscopeConfig
from pipeline.stages.lens.base import PatchedLens
from pipeline.stages.lens.inputs import Inputs, find_mapping, layers_of, needed_layers


class Patchscope(PatchedLens[PatchscopeConfig]):
    """The patchscope lens on pairs, or on every prompt with an identity prompt.

    Raises:
        InterpError: see `patched_examples`, `find_latents` and `find_mapping`; or the model has no such layers.
    """

    def __init__(self, name: str, config: PatchscopeConfig, inputs: Inputs) -> None:
        layers = layers_of(name, "layers", config.layers, inputs.model.num_layers)
        needed = needed_layers(config, layers, inputs.model.num_layers)
        super().__init__(name, config, inputs, {"layer": layers}, needed=needed, top_k=config.top_k)
        self.mapping = find_mapping(name, config, inputs.model, needed)

    def attributes(self) -> dict[str, Any]:
        """The attributes of its store that are known before it is computed, and what its mapping was made from."""
        return {**super().attributes(), "mapping": self.mapping.told}

    def compute(self, rows: range) -> dict[str, NDArray]:
        """The arrays of one block of examples."""
        result = patchscope_lens(
            self.inputs.model,
            self.source(rows),
            **self.target(rows),
            layers=self.axes["layer"],
            patch=cast(Patch, self.config.patch),
            site=self.config.site,
            mapping=self.mapping.to_one,
            top_k=self.top_k,
            batch_size=self.batch_size,
            remote=self.inputs.remote,
        )
        return self.values(result, rows)

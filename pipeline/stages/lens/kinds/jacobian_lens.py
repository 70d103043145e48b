"""Kind `jacobian_lens`: the collected residual streams, carried to the last layer by given matrices, and read out."""

from __future__ import annotations

from numpy.typing import NDArray

from interp.errors import InterpError
from interp.lenses import jacobian_lens, load_jacobians
from pipeline.config.lens import JacobianLensConfig
from pipeline.files import sha256_of
from pipeline.stages.lens.base import ReadingLens
from pipeline.stages.lens.inputs import Inputs, every_prompt, latents_of, layers_of


class JacobianLens(ReadingLens[JacobianLensConfig]):
    """The Jacobian lens on every prompt.

    Raises:
        InterpError: see `every_prompt` and `latents_of`; the model has no such layers, or its file no matrix for them,
            matrices of another size, or other bytes than the config says.
    """

    def __init__(self, name: str, config: JacobianLensConfig, inputs: Inputs) -> None:
        layers = layers_of(name, "layers", config.layers, inputs.model.num_layers)
        if sha256_of(config.file()) != config.sha256:
            raise InterpError(f"lens.{name}.jacobians: {config.jacobians} has changed since the run was begun.")
        self.jacobians = load_jacobians(config.file())
        absent = [layer for layer in layers if layer not in (*self.jacobians.layers, inputs.model.num_layers - 1)]
        if absent or self.jacobians.weight.shape[-1] != inputs.model.hidden_size:
            raise InterpError(
                f"lens.{name}.jacobians: expected matrices of layers {list(layers)} (but the last) and of size "
                f"{inputs.model.hidden_size}, got layers {list(self.jacobians.layers)} of size "
                f"{self.jacobians.weight.shape[-1]}. Are they of another model?"
            )
        examples = every_prompt(name, inputs.tokens)
        super().__init__(
            name, config, inputs, examples, {"layer": layers}, top_k=config.top_k, batch_size=config.batch_size
        )
        self.latents = latents_of(name, config, inputs, examples, layers)
        self.own = self.own_latents(config.position)

    def compute(self, rows: range) -> dict[str, NDArray]:
        """The arrays of one block of examples."""
        block = slice(rows.start, rows.stop)
        result = jacobian_lens(
            self.inputs.model,
            self.jacobians,
            self.latents.source(self.examples.sources[block], self.own),
            self.examples.answers[block],
            top_k=self.top_k,
            batch_size=self.batch_size,
            inverted=self.config.inverted,
        )
        return self.values(result, rows)

"""Kind `knockout`: attention to named sets of tokens, cut in windows of layers."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from interp.errors import InterpError
from interp.lenses import attention_knockout
from interp.positions import Position, check_blocks
from pipeline.config.lens import KnockoutConfig
from pipeline.stages.lens.base import ReadingLens
from pipeline.stages.lens.inputs import Inputs, every_prompt, layers_of
from pipeline.stages.loading import as_fed


class Knockout(ReadingLens[KnockoutConfig]):
    """Attention knock-out on every prompt.

    Raises:
        InterpError: see `every_prompt`; the model has no such layers; a block that cannot be read, or that a prompt
            does not have.
    """

    def __init__(self, name: str, config: KnockoutConfig, inputs: Inputs) -> None:
        layers = layers_of(name, "layers", config.layers, inputs.model.num_layers)
        try:
            blocks = check_blocks(config.blocks)
            query = Position.parse(config.query_position)
        except InterpError as error:
            raise InterpError(f"lens.{name}: {error}") from None
        axes: dict[str, list[Any]] = {"layer": layers, "block": [block.text for block in blocks]}
        examples = every_prompt(name, inputs.tokens)
        super().__init__(name, config, inputs, examples, axes, top_k=config.top_k, batch_size=config.batch_size)
        self.prompts = [inputs.tokens.prompts[row] for row in examples.rows]
        self.blocks: list[dict[str, list[int]]] = []
        self.queries: list[list[int]] = []
        for row, prompt in zip(examples.rows, self.prompts, strict=True):
            length = len(prompt.input_ids)
            try:
                self.blocks.append({block.text: block.resolve(length, prompt.spans) for block in blocks})
                self.queries.append(query.resolve(length, prompt.spans))
            except InterpError as error:
                raise InterpError(f"lens.{name}, prompt {row}: {error}") from None

    def num_tokens(self, rows: range) -> int:
        """How many tokens of prompts a plain way would run for a block: all of them, for each window and block."""
        runs = len(self.axes["layer"]) * len(self.axes["block"])
        return runs * sum(len(self.prompts[row].input_ids) for row in rows)

    def compute(self, rows: range) -> dict[str, NDArray]:
        """The arrays of one block of examples."""
        chosen = slice(rows.start, rows.stop)
        result = attention_knockout(
            self.inputs.model,
            [as_fed(prompt) for prompt in self.prompts[chosen]],
            self.blocks[chosen],
            self.examples.answers[chosen],
            window=self.config.window,
            layers=self.axes["layer"],
            centred=self.config.centred,
            query_positions=self.queries[chosen],
            top_k=self.top_k,
            batch_size=self.batch_size,
        )
        values: dict[str, NDArray] = dict(result.arrays())
        return values | {"baseline_source_log_prob": values.pop("baseline")}  # what the unblocked prompt says

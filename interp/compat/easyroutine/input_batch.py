"""One batch of a dataloader, as the model's own examples: token ids without padding, and where named positions are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations.prompt_batches import encoded_prompts
from interp.compat.easyroutine.named_positions import Name, pivots_of, tokens_at
from interp.compat.easyroutine.processor_batches import encoded_rows, fed_beside, of_processor
from interp.errors import InterpError
from interp.prompts import Encoded

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["InputBatch"]

_TEXT = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclass
class InputBatch:
    """Examples, each with its own tokens.

    Arguments:
        encoded: the examples.
        pivots: where each is split, for the names of groups.
        others: what else the batch holds, such as labels.
        padding_id: what stands behind the tokens of an example that is shorter than another.
    """

    encoded: list[Encoded]
    pivots: list[list[int]]
    others: dict[str, Any] = field(default_factory=dict)
    padding_id: int = 0
    _known: dict[Name, list[list[int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: StandardizedTransformer, inputs: Any, pivots: Any = None) -> InputBatch:
        """Read a batch.

        Arguments:
            model: the model.
            inputs: `input_ids` (example, column) with `attention_mask`, padded on either side, and whatever else; or
                texts; or a batch that was read.
            pivots: where examples are split, one list for all or one for each.

        Raises:
            InterpError: no tokens, or what the model cannot be fed.
        """
        if isinstance(inputs, InputBatch):
            return inputs if pivots is None else replace(inputs, pivots=pivots_of(pivots, len(inputs)), _known={})
        others: dict[str, Any] = {}
        padding_id = getattr(model.tokenizer, "pad_token_id", None) or 0
        if isinstance(inputs, Mapping):
            if "input_ids" not in inputs:
                raise InterpError(
                    f"inputs: expected input_ids (and attention_mask), got {', '.join(map(str, inputs))}."
                )
            images = fed_beside(model, inputs)
            fed = {*_TEXT, *images, *of_processor(model)}
            others = {name: value for name, value in inputs.items() if name not in fed}
            if images:
                encoded = encoded_rows(model, inputs)
                return cls(encoded, pivots_of(pivots, len(encoded)), others, padding_id)
            inputs = {name: inputs[name] for name in _TEXT if inputs.get(name) is not None}
        encoded = encoded_prompts(model, inputs, name="inputs")
        return cls(encoded, pivots_of(pivots, len(encoded)), others, padding_id)

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def input_ids(self) -> Tensor:
        """(example, token), each example's own tokens, then padding."""
        rows = [one.input_ids for one in self.encoded]
        width = max(map(len, rows))
        return torch.tensor([[*row, *[self.padding_id] * (width - len(row))] for row in rows], device="cpu")

    def tokens(self, name: Name) -> list[list[int]]:
        """The tokens of each example that a name means, counted from 0 without padding; drawn ones are drawn once."""
        if name not in self._known:
            self._known[name] = tokens_at(name, self.encoded, self.pivots)
        return self._known[name]

    def call(self, name: Name, tokens: list[list[int]]) -> None:
        """Let a name mean these tokens, of each example."""
        self._known[name] = tokens

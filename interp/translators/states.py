"""Residual streams that a tuned lens is trained on: all layers of a batch from one forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.forward import check_ready, whole_batches
from interp.matmul import faster_products
from interp.model.fed import check_fed, whole_inputs
from interp.passes import in_turn
from interp.translators.data import TokenSequence

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["TextSize", "TokenStates", "batches_of_tokens", "token_chunks", "token_states"]

# Numbers in the logits of one chunk of tokens: 64 MiB in float32, of which training holds about five.
CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class TokenStates:
    """What a model holds at every token of some sequences, in order, without padding.

    Arguments:
        final: (token, hidden), the residual stream after the last layer.
        by_layer: layer -> (token, hidden), after that layer.
        next_ids: (token,) int64, the token that follows; -1 after the last of a sequence.
    """

    final: Tensor
    by_layer: dict[int, Tensor]
    next_ids: Tensor

    def __len__(self) -> int:
        return len(self.next_ids)

    def rows(self, rows: slice | Tensor) -> TokenStates:
        """Some of the tokens."""
        chosen = {layer: hidden[_on(rows, hidden)] for layer, hidden in self.by_layer.items()}
        return TokenStates(self.final[_on(rows, self.final)], chosen, self.next_ids[_on(rows, self.next_ids)])

    def followed(self) -> TokenStates:
        """The tokens that another follows."""
        return self.rows((self.next_ids >= 0).nonzero()[:, 0])


@dataclass
class TextSize:
    """How many tokens were predicted, and of how many bytes of text."""

    tokens: int = 0
    num_bytes: int = 0

    def add(self, sequences: Iterable[TokenSequence]) -> None:
        """Count all tokens but the first of each sequence."""
        for sequence in sequences:
            self.tokens += len(sequence.ids) - 1
            self.num_bytes += sum(sequence.num_bytes[1:])

    def bits_per_byte(self, nats_per_token: float) -> float:
        """Nats a token as bits a byte of text: comparable between tokenizers; NaN where there is no text."""
        if not self.num_bytes:
            return math.nan
        return nats_per_token * self.tokens / self.num_bytes / math.log(2)


@in_turn
@torch.no_grad()
def token_states(
    model: StandardizedTransformer, sequences: Sequence[TokenSequence], layers: Sequence[int]
) -> TokenStates:
    """Run sequences once, up to the last layer, and keep the residual stream after some layers.

    Arguments:
        model: the model.
        sequences: fed together, padded on the left where they differ in length.
        layers: which layers, ascending.

    Raises:
        InterpError: a token id outside the vocabulary.
    """
    check_ready(model)
    ids = [sequence.ids for sequence in sequences]
    bad = [i for row in ids for i in (min(row), max(row)) if not 0 <= i < model.vocab_size]
    if bad:
        raise InterpError(
            f"token id {bad[0]} is outside the vocabulary of the model (0 to {model.vocab_size - 1}). Were the "
            "sequences made with another model's tokenizer?"
        )
    check_fed(model, ids, "sequences")
    kept = sorted({*layers, model.num_layers - 1})
    rows: list[dict[int, Tensor]] = [{} for _ in ids]
    for batch in whole_batches(model, [len(row) for row in ids], len(ids)):
        for row, held in zip(batch, _run(model, [ids[row] for row in batch], kept), strict=True):
            rows[row] = held
    by_layer = {layer: torch.cat([held[layer] for held in rows]) for layer in kept}
    next_ids = torch.cat([torch.tensor([*row[1:], -1], device="cpu") for row in ids]).to(model.device)
    return TokenStates(by_layer[kept[-1]], {layer: by_layer[layer] for layer in layers}, next_ids)


def _run(
    model: StandardizedTransformer, ids: Sequence[Sequence[int]], layers: Sequence[int]
) -> list[dict[int, Tensor]]:
    """Of each row, layer -> (token, hidden) after it, by one forward pass."""
    inputs = whole_inputs(model, ids)
    longest = inputs["input_ids"].shape[1]
    held: dict[int, Tensor] = {}
    products = faster_products(inputs["input_ids"].numel(), model.hidden_size, model.dtype, model.device)
    with products, model.trace(**inputs, use_cache=False) as tracer:
        for layer in layers:
            held[layer] = model.read(f"resid_post.{layer}").detach().clone()
        tracer.stop()
    return [{layer: hidden[row, longest - len(own) :] for layer, hidden in held.items()} for row, own in enumerate(ids)]


def batches_of_tokens(sequences: Iterable[TokenSequence], batch_tokens: int) -> Iterator[list[TokenSequence]]:
    """Put sequences together, in order, as long as they have `batch_tokens` tokens at most, padding counted.

    A sequence that is longer than that goes alone.

    Raises:
        InterpError: something else than sequences.
    """
    batch: list[TokenSequence] = []
    longest = 0
    for sequence in sequences:
        if not isinstance(sequence, TokenSequence):
            raise InterpError(
                "sequences: expected `TokenSequence`s, of `GivenSequences.of(tokenizer, input_ids)` or a `PackedText`, "
                f"got {sequence!r:.80}."
            )
        longest = max(longest, len(sequence.ids))
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest = [], len(sequence.ids)
        batch.append(sequence)
    if batch:
        yield batch


def token_chunks(states: TokenStates, vocab_size: int) -> Iterator[TokenStates]:
    """Tokens whose logits have at most `CHUNK_ELEMENTS` numbers."""
    size = max(1, CHUNK_ELEMENTS // vocab_size)
    for start in range(0, len(states), size):
        yield states.rows(slice(start, start + size))


def _on(rows: slice | Tensor, tensor: Tensor) -> slice | Tensor:
    return rows.to(tensor.device) if isinstance(rows, Tensor) else rows

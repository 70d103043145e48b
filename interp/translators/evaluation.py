"""Measures a tuned lens against the model's own prediction, beside the logit lens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.errors import InterpError
from interp.readout import reduce_hidden
from interp.sites.parsing import check_lens_layers
from interp.translators.data import GivenSequences, PackedText, TokenSequence
from interp.translators.layer_translators import TunedLens
from interp.translators.states import TextSize, TokenStates, batches_of_tokens, token_states

if TYPE_CHECKING:
    import pandas as pd

    from interp.model import StandardizedTransformer

__all__ = ["LensEvaluation", "evaluate_tuned_lens"]

LENSES = ("logit", "tuned")
_TOKENS_AT_ONCE = 256  # whose hidden states, of both lenses at all layers, are read together
_MEASURES = ("cross_entropy", "kl", "entropy", "agreement")


@dataclass(frozen=True)
class LensEvaluation:
    """Logit lens and tuned lens on the same text. Arrays are (lens, layer), float64, lenses in the order of `lenses`.

    Arguments:
        layers: what the axis `layer` stands for. At the model's last layer both lenses are the model itself.
        cross_entropy: mean of -ln p(the token that follows), nats a token.
        bits_per_byte: the same, bits a byte of text.
        kl: mean KL(the model's final distribution || the lens), nats.
        entropy: mean entropy of the lens, nats.
        agreement: share of tokens at which the lens's most probable token is the model's.
        tokens: how many tokens were predicted.
        num_bytes: of how many UTF-8 bytes of text.
        lenses: what the axis `lens` stands for.
    """

    layers: tuple[int, ...]
    cross_entropy: NDArray[np.float64]
    bits_per_byte: NDArray[np.float64]
    kl: NDArray[np.float64]
    entropy: NDArray[np.float64]
    agreement: NDArray[np.float64]
    tokens: int
    num_bytes: int
    lenses: tuple[str, ...] = LENSES

    def to_frame(self) -> pd.DataFrame:
        """A row for each lens and layer."""
        import pandas as pd

        index = pd.MultiIndex.from_product([self.lenses, self.layers], names=["lens", "layer"])
        return pd.DataFrame({name: values.ravel() for name, values in self._arrays().items()}, index).reset_index()

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON."""
        whole = {field.name: getattr(self, field.name) for field in fields(self)}
        return whole | {name: values.tolist() for name, values in self._arrays().items()}

    def _arrays(self) -> dict[str, NDArray[np.float64]]:
        return {name: getattr(self, name) for name in ("cross_entropy", "bits_per_byte", "kl", "entropy", "agreement")}


@torch.no_grad()
def evaluate_tuned_lens(
    model: StandardizedTransformer,
    lens: TunedLens,
    sequences: Iterable[TokenSequence],
    *,
    layers: Sequence[int] | None = None,
    max_tokens: int | None = None,
    batch_tokens: int = 1 << 12,
) -> LensEvaluation:
    """Measure a tuned lens and the logit lens on text, best on text that the lens was not trained on.

    Every token that another follows counts. Memory does not depend on how many there are. A stream is left where it
    was, so that another lens is measured on the same text.

    Arguments:
        model: the model.
        lens: its tuned lens.
        sequences: the text, `PackedText` or `GivenSequences`; one that repeats needs `max_tokens`.
        layers: which layers, ascending; None: those of the lens, and the model's last.
        max_tokens: stop when this many tokens have been fed; None: at the end of the text.
        batch_tokens: tokens in a forward pass at most, padding counted.

    Raises:
        InterpError: no tokens, or layers that the lens or the model does not have.
    """
    last = model.num_layers - 1
    chosen = check_lens_layers((*lens.layers, last) if layers is None else layers, model.num_layers)
    lens.translate(
        torch.zeros(len(chosen), 0, model.hidden_size, dtype=torch.float32, device="cpu"), chosen
    )  # raises on a layer that it has not
    size = TextSize()
    sums = torch.zeros(len(LENSES), len(chosen), len(_MEASURES), dtype=torch.float64, device="cpu")
    stream = sequences if isinstance(sequences, GivenSequences | PackedText) else None
    place = stream.state() if stream is not None else {}
    for batch in batches_of_tokens(_limited(sequences, max_tokens), batch_tokens):
        size.add(batch)
        states = token_states(model, batch, chosen).followed()
        for start in range(0, len(states), _TOKENS_AT_ONCE):
            _add(model, lens, states.rows(slice(start, start + _TOKENS_AT_ONCE)), chosen, sums)
    if stream is not None:
        stream.restore(place)
    if not size.tokens:
        raise InterpError("expected text with at least one sequence of two tokens, got none. Is it long enough?")
    means = (sums / size.tokens).numpy()
    cross_entropy, kl, entropy, agreement = (means[:, :, index] for index in range(len(_MEASURES)))
    return LensEvaluation(
        layers=chosen,
        cross_entropy=cross_entropy,
        bits_per_byte=np.vectorize(size.bits_per_byte)(cross_entropy),
        kl=kl,
        entropy=entropy,
        agreement=agreement,
        tokens=size.tokens,
        num_bytes=size.num_bytes,
    )


def _limited(sequences: Iterable[TokenSequence], max_tokens: int | None) -> Iterable[TokenSequence]:
    tokens = 0
    for sequence in sequences if isinstance(sequences, Iterable) else [sequences]:
        yield sequence
        tokens += len(sequence.ids)
        if max_tokens is not None and tokens >= max_tokens:
            return


def _add(
    model: StandardizedTransformer, lens: TunedLens, states: TokenStates, layers: tuple[int, ...], sums: Tensor
) -> None:
    """Add what both lenses say of some tokens to the sums (lens, layer, measure)."""
    final = states.final
    hidden = torch.stack([states.by_layer[layer].to(final.device) for layer in layers])  # (layer, token, hidden)
    spoken = torch.cat([hidden, lens.translate(hidden, layers).to(final), final[None]])
    following = [[[token]] for token in states.next_ids.tolist()]
    reduced = reduce_hidden(model, spoken, following, 1, kl_reference=len(spoken) - 1)
    assert reduced.kl is not None
    agrees = reduced.top_ids[..., 0] == reduced.top_ids[-1, :, 0]
    values = torch.stack([-reduced.log_prob[..., 0], reduced.kl, reduced.entropy, agrees])  # (measure, lens, token)
    sums += values.double().sum(-1)[:, :-1].unflatten(1, (len(LENSES), -1)).permute(1, 2, 0).cpu()

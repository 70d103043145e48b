"""The reading of hidden states that every lens shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.errors import InterpError
from interp.readout import Reduced, TokenGroups, logits_of, reduce_hidden
from interp.results import Floats, LensResult
from interp.sites.parsing import check_lens_layers

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["read_layers", "surprisal_of", "windows_of"]


def read_layers(
    model: StandardizedTransformer,
    hidden: Tensor,
    groups: TokenGroups,
    *,
    layers: tuple[int, ...],
    top_k: int,
    reference: Tensor | None,
    baseline: Floats | None = None,
    inverted: bool = False,
) -> LensResult:
    """Read one batch of hidden states out through the model's own tail, all layers at once.

    No (row, vocabulary) tensor is made, where the head is a plain matrix: see `interp.readout.reduce_hidden`.

    Arguments:
        model: the model.
        hidden: (layer, row, hidden_size), residual streams.
        groups: the token groups of the rows.
        layers: what the axis `layer` of `hidden` stands for; the last one is what `kl` compares with.
        top_k: how many top tokens are kept.
        reference: (row, hidden_size), the residual stream after the model's last layer at the source position, which
            gives p_model; None: not known.
        baseline: goes into the result as it is.
        inverted: turn the sign after the final norm (of `hidden`, not of `reference`).

    Returns:
        The result for these rows.
    """
    last, rows = len(layers) - 1, hidden.shape[1]
    # Often p_model is what the last layer says: then it is read once.
    known = reference is not None and not inverted and _same(reference, hidden[last])
    if reference is not None and not (known or inverted):
        hidden = torch.cat([hidden, reference[None].to(hidden.device)])
    reduced = reduce_hidden(model, hidden, groups, top_k, kl_reference=last, inverted=inverted)
    read = reduced[: last + 1]
    assert read.kl is not None
    if reference is None:
        surprisal, model_top_id = (
            torch.full((len(layers), rows), torch.nan, dtype=torch.float32, device="cpu"),
            torch.full((rows,), -1, dtype=torch.int32, device="cpu"),
        )
    else:
        source = reduce_hidden(model, reference, groups, 1) if inverted else reduced[last if known else last + 1]
        model_top_id = source.top_ids[:, 0]
        surprisal = surprisal_of(model, reference, read.top_ids[..., 0].T, source).T
    return LensResult(
        coordinates={"example": range(rows), "layer": layers},
        log_prob=_by_row(read.log_prob),
        rank=_by_row(read.rank),
        top_ids=_by_row(read.top_ids),
        top_log_prob=_by_row(read.top_log_prob),
        entropy=_by_row(read.entropy),
        kl=_by_row(read.kl),
        surprisal=_by_row(surprisal),
        model_top_id=model_top_id.cpu().numpy(),
        baseline=baseline,
    )


def surprisal_of(model: StandardizedTransformer, states: Tensor, ids: Tensor, read: Reduced) -> Tensor:
    """How unexpected tokens are to a model, without its logits of all the others.

    Arguments:
        model: the model.
        states: (row, hidden_size), residual streams after its last layer.
        ids: (row, n) token ids.
        read: what was read of `states`, with one top token at least.

    Returns:
        (row, n), -ln p of each, nats.
    """
    top, log_prob = read.top_ids[:, :1].long(), read.top_log_prob[:, :1]
    ids = ids.to(top.device).long()
    logits = logits_of(model, states, torch.cat([top, ids], dim=1))  # (row, 1 + n)
    # Two products may differ in a last bit: the top token has the number that was read.
    return torch.where(ids == top, log_prob, log_prob + logits[:, 1:] - logits[:, :1]).neg()


def _same(left: Tensor, right: Tensor) -> bool:
    return left.device == right.device and left.dtype == right.dtype and torch.equal(left, right)


def _by_row(by_layer: Tensor) -> NDArray:
    """(layer, row, ...) on any device -> (row, layer, ...)."""
    return by_layer.transpose(0, 1).contiguous().cpu().numpy()


def windows_of(
    layers: Sequence[int] | None, window: int | None, num_layers: int, *, centred: bool = False
) -> dict[int, range]:
    """The windows of layers that a lens goes through.

    Arguments:
        layers: where the windows are, ascending; None: at every layer, or without a window's size at layer 0 alone.
        window: how many layers; None: up to the last.
        num_layers: the model's depth.
        centred: a window is [layer - window // 2, layer + (window + 1) // 2), as Geva et al. place theirs, in place of
            [layer, layer + window). Either is cut off at the ends of the model.

    Returns:
        Layer -> the layers of its window, in the order of `layers`.

    Raises:
        InterpError: layers that the model does not have or not in order, a window of no layer, or one that is centred
            without a size.
    """
    if window is None:
        if centred:
            raise InterpError("centred: expected a window of so many layers, got window=None (up to the last layer).")
        starts = check_lens_layers([0] if layers is None else layers, num_layers)
        return {start: range(start, num_layers) for start in starts}
    if window < 1:
        raise InterpError(f"window: expected at least 1 layer, or None for all up to the last, got {window}.")
    places = check_lens_layers(range(num_layers) if layers is None else layers, num_layers)
    shift = window // 2 if centred else 0
    return {place: range(max(0, place - shift), min(num_layers, place - shift + window)) for place in places}

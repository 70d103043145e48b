"""TransformerLens's patching grids on `interp.patching`'s walk, where they mean the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.compat.transformer_lens.names import get_act_name
from interp.model.resolve import why_missing
from interp.patching.cells import Cell
from interp.patching.grid import GridPlan
from interp.patching.run import run
from interp.sites import Site

if TYPE_CHECKING:
    from interp.compat.transformer_lens.bridge import TransformerBridge
    from interp.compat.transformer_lens.named_cache import ActivationCache

__all__ = ["Cells", "walked"]

# TransformerLens's value -> interp's site whose patching is the same run.
_SITES = {
    "resid_pre": "resid_pre", "resid_mid": "resid_mid", "resid_post": "resid_post", "attn_out": "attn_out",
    "mlp_out": "mlp_out", "post": "mlp_post", "z": "z", "q": "q", "k": "k", "v": "v", "rot_q": "q", "rot_k": "k",
    "pattern": "pattern", "attn_scores": "scores",
}  # fmt: skip
_MAPS = ("pattern", "scores")


@dataclass(frozen=True)
class Cells:
    """What each run writes.

    Arguments:
        indices: of each cell, the layer first.
        position: where the position stands in an index; None: all positions are written.
        head: where the head stands; None: all heads.
        is_map: the setter is for (batch, head, query, key).
    """

    indices: Sequence[Sequence[int]]
    position: int | None
    head: int | None
    is_map: bool


@torch.no_grad()
def walked(
    model: TransformerBridge,
    corrupted_tokens: Tensor,
    clean_cache: ActivationCache,
    activation_name: str,
    cells: Cells,
    measured: Callable[[Tensor], Tensor],
    unpatched: Tensor,
    before: Tensor,
) -> Tensor | None:
    """The metric of each cell, by the walk; None where that would not give what runs of their own give.

    Arguments:
        model: the model.
        corrupted_tokens: (batch, position).
        clean_cache: what is written.
        activation_name: short.
        cells: the cells.
        measured: logits (batch, position, d_vocab) -> (metric[, row]).
        unpatched: the corrupted run's logits.
        before: the metric of these.

    Returns:
        (cell, metric[, row]).
    """
    kind = _SITES.get(activation_name)
    clean_tokens = getattr(clean_cache, "tokens", None)
    if kind is None or cells.is_map != (kind in _MAPS) or corrupted_tokens.dim() != 2 or not cells.indices:
        return None
    if clean_tokens is None or clean_tokens.shape != corrupted_tokens.shape or clean_cache.model is not model:
        return None
    layers = sorted({index[0] for index in cells.indices})
    if any(point.has_hooks() for point in model.hook_points()) or not _is_same_write(
        model, kind, activation_name, layers
    ):
        return None
    names = [get_act_name(activation_name, layer) for layer in layers]
    if not _is_of_a_run(model, clean_tokens, clean_cache, names):
        return None
    shown = _last_token_only(measured, unpatched, before)
    if shown is None:
        return None
    rows, length = corrupted_tokens.shape
    everywhere = tuple(range(length))
    places = [everywhere] if cells.position is None else [(position,) for position in range(length)]
    written = [
        Cell(
            index[0],
            0 if cells.position is None else index[cells.position],
            None if cells.head is None else index[cells.head],
        )
        for index in cells.indices
    ]
    plan = GridPlan(
        model.standardized,
        kind,
        corrupted_tokens.tolist(),
        clean_tokens.tolist(),
        [places] * rows,
        [places] * rows,
        written,
    )
    ends: Tensor | None = None  # (cell, row, hidden)
    for _, found in run(plan, rows):
        if ends is None:
            ends = found.base.new_empty(len(written), rows, found.base.shape[-1])
        for index, number in enumerate(found.cells):  # None: these cells change nothing
            ends[number, found.rows] = found.base if found.hidden is None else found.hidden[index]
    assert ends is not None  # there is a cell
    return torch.stack([measured(shown(model.standardized.readout(hidden))) for hidden in ends])


def _is_same_write(model: TransformerBridge, kind: str, name: str, layers: Sequence[int]) -> bool:
    """Whether a site, written, is what the point of that name, written, is.

    Queries and keys are rotated one position at a time, and most norms take one head at a time: then what is written
    before and what is written behind them comes to the same.
    """
    if any(why_missing(model.standardized, Site(kind, layer)) is not None for layer in layers):
        return False
    if name not in ("q", "k"):
        return True
    parts = [model.points.parts[layer] for layer in layers]
    return all(f"{name}_norm" not in part.norms or f"{name}_norm" in part.by_head for part in parts)


def _is_of_a_run(model: TransformerBridge, clean_tokens: Tensor, cache: ActivationCache, names: Sequence[str]) -> bool:
    """Whether a cache's values are what the model computes of those tokens: none was changed since."""
    _, fresh = model.run_with_cache(clean_tokens, names_filter=list(names), return_type=None)
    return all(name in cache and _equal(cache[name], fresh[name]) for name in names)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.to(other), other, rtol=1e-4, atol=1e-5)


def _last_token_only(
    measured: Callable[[Tensor], Tensor], logits: Tensor, expected: Tensor
) -> Callable[[Tensor], Tensor] | None:
    """From the last token's logits (batch, d_vocab) what the metric is shown; None where it looks at others too."""
    alone = torch.full_like(logits, torch.nan)
    alone[:, -1] = logits[:, -1]
    if not _gives(measured, alone, expected):
        return None
    if _gives(measured, logits[:, -1:], expected):
        return lambda last: last[:, None]

    def shown(last: Tensor) -> Tensor:
        alone[:, -1] = last
        return alone

    return shown


def _gives(measured: Callable[[Tensor], Tensor], logits: Tensor, expected: Tensor) -> bool:
    try:
        found = measured(logits)
    except (IndexError, ValueError, RuntimeError):  # ValueError: another shape, or InterpError of it
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-5, atol=1e-6)

"""Figures of a patching result: a heat map over the two axes of its grid, positions called by their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from interp.errors import InterpError
from interp.plots.figure import Figure, Frame, figure_of
from interp.plots.heat_map import HeatMap
from interp.plots.lens import finite_mean, mean_and_band
from interp.results import Coordinate
from interp.results.patching_result import Effect, PatchingResult
from interp.text import readable, token_text, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["patching_figure"]

_TITLES = {"recovery": "Recovery", "effect": "Effect", "patched": "Patched"}
_UNITS = {"probability": "", "log_probability": "nats", "kl": "nats", "logit_difference": "logits"}


def patching_figure(
    result: PatchingResult,
    quantity: Effect = "recovery",
    *,
    metric: str | None = None,
    example: Coordinate | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    position_names: Sequence[str] | None = None,
    significant: float | None = None,
    title: str | None = None,
) -> Figure:
    """A heat map of a result; see `PatchingResult.plot`."""
    if not result.coordinates["example"]:
        raise InterpError("plot: expected at least one example, and this result has none.")
    if len(result.grid) not in (1, 2):
        raise InterpError(
            f"plot: a heat map has one or two axes beside `example`, this result has {', '.join(result.axes)}. Select "
            "one coordinate of the others first, e.g. result.select(site='resid_pre').plot()."
        )
    result = result.select(group=result.group_names[0] if metric is None else metric)
    if example is not None:
        result = result.select(example=example)
    values = result.values(quantity)[..., 0]
    mean, low, high = (part.reshape(_shape(result)) for part in mean_and_band(values, 0.95))  # (upward, across)
    counts = finite_mean(values)[1].reshape(_shape(result))
    tested = ""
    if significant is not None:
        table = result.statistics(quantity)
        kept = table["p_corrected"].to_numpy().reshape(mean.shape) < significant
        mean = np.where(kept, mean, np.nan)
        size = int(table["family_size"].iloc[0])
        tested = f"{int(kept.sum())} of {size} cells: p < {significant:g}, corrected for {size} tests"
    upward, across = result.grid if len(result.grid) == 2 else (None, result.grid[0])
    turned = upward in ("position", "head") or (across == "layer" and upward is not None)
    if turned:
        upward, across = across, upward
        mean, low, high, counts = mean.T, low.T, high.T, counts.T
    finite = mean[np.isfinite(mean)]
    bounds = (min(0.0, float(finite.min())), max(float(finite.max()), 1e-9)) if finite.size else (0.0, 1.0)
    name = result.group_names[0]
    unit = "" if quantity == "recovery" else _UNITS.get(name, "")
    assert across is not None
    heat = HeatMap(
        metric=quantity,
        title=tested or _TITLES[quantity],
        unit="" if tested else unit,
        note="",
        group=None,
        rows=_along(result, upward, tokenizer, position_names) if upward else [""],
        columns=_along(result, across, tokenizer, position_names),
        mean=mean.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        n=counts.tolist(),
        top=bounds[1],
        bottom=bounds[0],
        row_label=_label(upward) if upward else "",
        column_label=_label(across),
        where=(f"{_label(upward).lower()} {{row}}, " if upward else "") + f"{_label(across).lower()} {{column}}",
    )
    examples = result.coordinates["example"]
    of = f"mean of {len(examples)} examples" if len(examples) > 1 else f"example {examples[0]}"
    shown = f"{_TITLES[quantity]}{f' ({unit})' if unit else ''} of {readable(name)}, {result.direction}: {of}"
    above = visible(title or shown).replace("␣", " ")
    return figure_of([[(heat, _frame(heat, above))]], scale=0.8, title=above)


def _frame(heat: HeatMap, title: str) -> Frame:
    """Tiles that are wide enough for names below them, where there are names; all as wide as the title."""
    named = any(isinstance(place, str) for place in heat.columns)
    side = (330.0 - 52.0) / max(len(heat.rows), len(heat.columns), 6)
    return heat.frame(bar=True, tile=(max(18.0, side), max(12.0, side)) if named else None).below(title)


def _shape(result: PatchingResult) -> tuple[int, ...]:
    sizes = tuple(len(result.coordinates[axis]) for axis in result.grid)
    return sizes if len(sizes) == 2 else (1, *sizes)


def _label(axis: str) -> str:
    return axis.replace("_", " ").capitalize()


def _along(
    result: PatchingResult,
    axis: str,
    tokenizer: PreTrainedTokenizerBase | None,
    position_names: Sequence[str] | None,
) -> list[Coordinate]:
    """What stands along an axis of the figure."""
    there = result.along(axis)
    if axis != "position":
        return list(there)
    if position_names is not None:
        if len(position_names) != len(there):
            raise InterpError(f"position_names: expected {len(there)}, one a position, got {len(position_names)}.")
        return [f"{index}: {visible(name)}" for index, name in enumerate(position_names)]
    if tokenizer is None or result.token_ids is None:
        return list(there)
    return [_named(place, ids, tokenizer) for place, ids in zip(there, result.token_ids.T, strict=True)]


def _named(place: Coordinate, ids: NDArray[np.int32], tokenizer: PreTrainedTokenizerBase) -> str:
    """A position with its token, where all examples that have it have the same."""
    own = set(ids[ids >= 0].tolist())
    return f"{place}: {visible(token_text(tokenizer, own.pop()))}" if len(own) == 1 else str(place)

"""Figures of a lens's result: curves of groups, heat maps of groups over two axes, heat maps of top tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from interp.errors import InterpError, nearest
from interp.plots.curves import WIDE, Curves, Series, share_top
from interp.plots.figure import Figure, Group, figure_of, shortened
from interp.plots.heat_map import HeatMap
from interp.results import Coordinate, FigureKind, LensResult, Quantity
from interp.text import readable, token_text, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["finite_mean", "lens_figure", "mean_and_band"]

_TITLES = {
    "probability": ("Probability", ""),
    "log_prob": ("Log-probability", "nats"),
    "rank": ("Rank", ""),
    "entropy": ("Entropy", "nats"),
    "kl": ("KL divergence", "nats"),  # from what, each lens says
    "surprisal": ("Surprisal", "nats"),
}
# Where a quantity cannot be, a band is not drawn.
_BOUNDS = {
    "probability": (0.0, 1.0),
    "log_prob": (-np.inf, 0.0),
    "rank": (0.0, np.inf),
    "entropy": (0.0, np.inf),
    "kl": (0.0, np.inf),
    "surprisal": (0.0, np.inf),
}
TOKEN_TILE, TOKEN_LETTERS = (84.0, 24.0), 11
_OF_GROUPS = ("probability", "log_prob", "rank")


def lens_figure(
    result: LensResult,
    kind: FigureKind | None = None,
    *,
    quantity: Quantity = "probability",
    groups: Sequence[str] | None = None,
    example: Coordinate | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    position_names: Sequence[str] | None = None,
    confidence: float = 0.95,
    title: str | None = None,
) -> Figure:
    """A figure of a result; see `LensResult.plot`."""
    if not result.coordinates["example"]:
        raise InterpError("plot: expected at least one example, and this result has none.")
    if kind is None:
        kind = "heat_map" if len(result.axes) == 3 else "curves"
        if not result.group_names and quantity in _OF_GROUPS:
            kind = "tokens"  # of groups there is nothing to show
    if kind not in get_args(FigureKind):
        raise InterpError(f"plot: expected a kind of figure, got {kind!r}.{nearest(kind, get_args(FigureKind))}")
    if quantity not in get_args(Quantity):
        raise InterpError(f"plot: expected a quantity, got {quantity!r}.{nearest(quantity, get_args(Quantity))}")
    if kind == "tokens":
        return _tokens(result, example, tokenizer, position_names, title)
    if groups is not None:
        result = result.select(group=list(groups))
    if example is not None:
        result = result.select(example=example)
    if kind == "curves":
        return _curves(result, quantity, confidence, position_names, title)
    return _heat_maps(result, quantity, position_names, title)


def _values(result: LensResult, quantity: str) -> tuple[list[str], NDArray[np.float64]]:
    """Names, and (example, ..., name) float64, NaN where nothing is known."""
    if quantity not in _OF_GROUPS:
        return [quantity], np.asarray(getattr(result, quantity), dtype=np.float64)[..., None]
    if not result.group_names:
        raise InterpError(f"plot: {quantity} is of groups, and this result has none. Give the lens targets.")
    if quantity == "rank":
        return list(result.group_names), np.where(result.rank < 0, np.nan, result.rank)
    log_prob = np.asarray(result.log_prob, dtype=np.float64)
    return list(result.group_names), np.exp(log_prob) if quantity == "probability" else log_prob


def finite_mean(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The mean over examples of what is finite, and how many count."""
    valid = np.isfinite(values)
    n = valid.sum(axis=0)
    total = np.where(valid, values, 0.0).sum(axis=0)
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0), n


def mean_and_band(
    values: NDArray[np.float64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean over examples, and its confidence interval: mean -+ z std / sqrt(n), with the normal quantile z.

    Arguments:
        values: (example, ...); what is not finite is left out.
        confidence: between 0 and 1.

    Returns:
        (mean, low, high), each (...); the interval is NaN for fewer than two examples.

    Raises:
        InterpError: a confidence out of range.
    """
    if not 0 < confidence < 1:
        raise InterpError(f"confidence: expected a number between 0 and 1, got {confidence}.")
    mean, n = finite_mean(values)
    squares = np.where(np.isfinite(values), (values - mean) ** 2, 0.0).sum(axis=0)
    std = np.sqrt(np.divide(squares, n - 1, out=np.full(mean.shape, np.nan), where=n > 1))
    half = NormalDist().inv_cdf((1 + confidence) / 2) * std / np.sqrt(np.maximum(n, 1))
    return mean, mean - half, mean + half


def _axis_title(axis: str) -> str:
    return axis.replace("_", " ").capitalize()


def _along(result: LensResult, axis: str, position_names: Sequence[str] | None) -> list[Coordinate]:
    """What stands along an axis of a figure; names of their own stay apart where two are alike."""
    there = result.along(axis)
    if axis != "position" or position_names is None:
        return list(there)
    if len(position_names) != len(there):
        raise InterpError(f"position_names: expected {len(there)}, one a position, got {len(position_names)}.")
    return [f"{index}: {visible(name)}" for index, name in enumerate(position_names)]


def _curves(
    result: LensResult, quantity: str, confidence: float, position_names: Sequence[str] | None, title: str | None
) -> Figure:
    if len(result.axes) != 2:
        raise InterpError(
            f"plot: curves run along one axis beside `example`, and this result has {', '.join(result.axes)}. Select "
            "one of the others first, e.g. result.select(position='last').plot(), or plot kind='heat_map'."
        )
    axis = result.axes[1]
    along = _along(result, axis, position_names)
    x = [place if isinstance(place, int) else index for index, place in enumerate(along)]
    names, values = _values(result, quantity)
    mean, low, high = (np.clip(part, *_BOUNDS[quantity]).T for part in mean_and_band(values, confidence))
    counts = np.isfinite(values).sum(axis=0).T
    series = [
        Series(_group(name, index) if quantity in _OF_GROUPS else None, x, *(part[index].tolist() for part in
               (mean, low, high, counts)))
        for index, name in enumerate(names)
    ]  # fmt: skip
    shown = np.concatenate([mean.ravel(), high.ravel()])
    heading, unit = _TITLES[quantity]
    curves = Curves(
        metric=quantity,
        title=heading,
        unit=unit,
        note="",
        top=share_top(float(np.nanmax(shown, initial=0.0))) if quantity == "probability" else None,
        series=series,
        x_label=_axis_title(axis),
        x_names=[] if all(isinstance(place, int) for place in along) else [visible(str(place)) for place in along],
    )
    frame = WIDE if series[0].group else replace(WIDE, width=WIDE.width - WIDE.right + 20, right=20)
    if curves.x_names:
        frame = replace(frame, height=frame.height + 50, bottom=frame.bottom + 50)
    of = f"{_of(result)}, {confidence:.0%} interval" if len(values) > 1 else _of(result)
    return figure_of([[(curves, frame)]], scale=0.8, title=visible_line(title or f"{curves.heading}: {of}"))


def _group(name: str, index: int) -> Group:
    return Group(name, readable(name), index)


def visible_line(text: str) -> str:
    """A title on one line, letter by letter."""
    return visible(text).replace("␣", " ")


def _of(result: LensResult) -> str:
    examples = result.coordinates["example"]
    return f"mean of {len(examples)} examples" if len(examples) > 1 else f"example {examples[0]}"


def _heat_maps(result: LensResult, quantity: str, position_names: Sequence[str] | None, title: str | None) -> Figure:
    if len(result.axes) != 3:
        raise InterpError(
            f"plot: a heat map has two axes beside `example`, and this result has {', '.join(result.axes)}. "
            "With one, plot kind='curves'; of more, select one first."
        )
    across, upward = result.axes[2], result.axes[1]  # source layers upward, target layers across
    turned = upward == "position"
    if turned:
        across, upward = upward, across
    names, values = _values(result, quantity)
    mean, counts = finite_mean(values)  # (first axis, second axis, name)
    if turned:
        mean, counts = mean.swapaxes(0, 1), counts.swapaxes(0, 1)
    unknown = np.full(mean.shape[:2], np.nan).tolist()
    finite = mean[np.isfinite(mean)]
    low, high = (0.0, 1.0) if quantity == "probability" or not finite.size else (finite.min(), finite.max())
    heading, unit = _TITLES[quantity]
    maps = [
        HeatMap(
            metric=quantity,
            title=readable(name) if quantity in _OF_GROUPS else heading,
            unit="" if quantity in _OF_GROUPS else unit,
            note="",
            group=_group(name, index) if quantity in _OF_GROUPS else None,
            rows=_along(result, upward, position_names),
            columns=_along(result, across, position_names),
            mean=mean[..., index].tolist(),
            low=unknown,
            high=unknown,
            n=counts[..., index].tolist(),
            top=float(high),
            bottom=float(low),
            **_labels(upward, across),
        )
        for index, name in enumerate(names)
    ]
    cells = [(heat, heat.frame(bar=True)) for heat in maps]
    rows = [cells[start : start + 3] for start in range(0, len(cells), 3)]
    shown = f"{heading}{f' ({unit})' if unit else ''}: {_of(result)}"
    return figure_of(rows, scale=0.8, title=visible_line(title or shown))


def _labels(upward: str, across: str) -> dict[str, Any]:
    up, over = _axis_title(upward), _axis_title(across)
    return {"row_label": up, "column_label": over, "where": f"{up.lower()} {{row}}, {over.lower()} {{column}}"}


def _tokens(
    result: LensResult,
    example: Coordinate | None,
    tokenizer: PreTrainedTokenizerBase | None,
    position_names: Sequence[str] | None,
    title: str | None,
) -> Figure:
    if len(result.axes) not in (2, 3):
        raise InterpError(f"plot: tokens stand over one or two axes, this result has {', '.join(result.axes)}.")
    chosen = result.coordinates["example"][0] if example is None else example
    one = result.select(example=chosen)
    ids, log_prob = one.top_ids[0], one.top_log_prob[0]  # ([axis,] axis, k)
    if len(result.axes) == 3:
        ids, log_prob = ids[..., 0], log_prob[..., 0]
        upward, across = result.axes[1:]
        if upward == "position":
            upward, across, ids, log_prob = across, upward, ids.T, log_prob.T
        columns = _along(result, across, position_names)
    else:
        upward, across, columns = result.axes[1], "place", list(range(1, ids.shape[1] + 1))
    if across == "position":  # without positions that other prompts have and this one has not
        there = (ids >= 0).any(axis=0)
        ids, log_prob = ids[:, there], log_prob[:, there]
        columns = [column for column, is_there in zip(columns, there, strict=True) if is_there]
    probability = np.where(ids >= 0, np.exp(log_prob.astype(np.float64)), np.nan)
    unknown = np.full(ids.shape, np.nan).tolist()
    names = [[_token_name(tokenizer, int(token)) for token in row] for row in ids]
    heat = HeatMap(
        metric="top_ids",
        title="Probability",
        unit="",
        note="",
        group=None,
        rows=_along(result, upward, position_names),
        columns=[str(column) for column in columns],
        mean=probability.tolist(),
        low=unknown,
        high=unknown,
        n=np.ones_like(ids).tolist(),
        top=1.0,
        texts=[[shortened(name, TOKEN_LETTERS) for name in row] for row in names],
        tips=[
            [f"{name}, token {token}, probability" for name, token in zip(row, ids_row, strict=True)]
            for row, ids_row in zip(names, ids.tolist(), strict=True)
        ],
        **_labels(upward, across),
    )
    shown = visible_line(title or f"Most probable tokens, example {chosen}")
    return figure_of([[(heat, heat.frame(bar=True, tile=TOKEN_TILE))]], scale=0.9, title=shown)


def _token_name(tokenizer: PreTrainedTokenizerBase | None, token: int) -> str:
    if token < 0:
        return ""
    return f"#{token}" if tokenizer is None else visible(token_text(tokenizer, token))

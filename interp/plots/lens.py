"""Figures of a lens's result: curves of groups, heat maps of groups over two axes, heat maps of top tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from interp.errors import InterpError, nearest
from interp.plots.style import COLORS, FONT, escaped, graph_objects, make_subplots, token_heat_map, with_alpha
from interp.results import Coordinate, FigureKind, LensResult, Quantity
from interp.text import token_text, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["finite_mean", "lens_figure", "mean_and_band"]

_TITLES = {
    "probability": "probability",
    "log_prob": "log-probability (nats)",
    "rank": "rank",
    "entropy": "entropy (nats)",
    "kl": "KL divergence (nats)",  # from what, each lens says
    "surprisal": "surprisal (nats)",
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
) -> Any:
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
    return axis.replace("_", " ")


def _along(result: LensResult, axis: str, position_names: Sequence[str] | None) -> list[Coordinate]:
    """What stands along an axis of a figure; names of their own stay apart where two are alike."""
    there = result.along(axis)
    if axis != "position" or position_names is None:
        return [value if isinstance(value, int) else escaped(value) for value in there]
    if len(position_names) != len(there):
        raise InterpError(f"position_names: expected {len(there)}, one a position, got {len(position_names)}.")
    return [f"{index}: {escaped(visible(name))}" for index, name in enumerate(position_names)]


def _curves(
    result: LensResult, quantity: str, confidence: float, position_names: Sequence[str] | None, title: str | None
) -> Any:
    go = graph_objects()
    if len(result.axes) != 2:
        raise InterpError(
            f"plot: curves run along one axis beside `example`, and this result has {', '.join(result.axes)}. Select "
            "one of the others first, e.g. result.select(position='last').plot(), or plot kind='heat_map'."
        )
    axis = result.axes[1]
    along = _along(result, axis, position_names)
    names, values = _values(result, quantity)
    mean, low, high = mean_and_band(values, confidence)
    figure = go.Figure()
    for index, (name, color) in enumerate(zip(names, cycle(COLORS), strict=False)):
        shown = {"name": escaped(name), "legendgroup": str(index)}
        known = np.flatnonzero(np.isfinite(low[:, index]))
        if len(known):
            there = [along[place] for place in known]
            band = [high[known, index], low[known[::-1], index]]
            figure.add_trace(
                go.Scatter(
                    x=[*there, *reversed(there)],
                    y=np.clip(np.concatenate(band), *_BOUNDS[quantity]),
                    mode="lines",
                    fill="toself",
                    fillcolor=with_alpha(color, 0.18),
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                    **shown,
                )
            )
        line = go.Scatter(x=along, y=mean[:, index], mode="lines+markers", line={"color": color, "width": 2}, **shown)
        figure.add_trace(line)
    figure.update_xaxes(title_text=_axis_title(axis))
    figure.update_yaxes(title_text=_TITLES[quantity], rangemode="tozero" if quantity != "log_prob" else "normal")
    of = f"{_of(result)}, {confidence:.0%} interval" if len(values) > 1 else _of(result)
    return _finished(figure, title or f"{_TITLES[quantity]}: {of}", showlegend=quantity in _OF_GROUPS)


def _of(result: LensResult) -> str:
    examples = result.coordinates["example"]
    return f"mean of {len(examples)} examples" if len(examples) > 1 else f"example {escaped(str(examples[0]))}"


def _heat_maps(result: LensResult, quantity: str, position_names: Sequence[str] | None, title: str | None) -> Any:
    go = graph_objects()
    if len(result.axes) != 3:
        raise InterpError(
            f"plot: a heat map has two axes beside `example`, and this result has {', '.join(result.axes)}. "
            "With one, plot kind='curves'; of more, select one first."
        )
    across, upward = result.axes[2], result.axes[1]  # source layers upward, target layers across
    if upward == "position":
        across, upward = upward, across
    names, values = _values(result, quantity)
    mean, _ = finite_mean(values)  # (first axis, second axis, name)
    if across == "position":
        mean = mean.swapaxes(0, 1)
    figure = make_subplots(
        rows=1, cols=len(names), subplot_titles=[escaped(name) for name in names], shared_yaxes=True,
        horizontal_spacing=0.04,
    )  # fmt: skip
    finite = mean[np.isfinite(mean)]
    low, high = (0.0, 1.0) if quantity == "probability" or not finite.size else (finite.min(), finite.max())
    for index in range(len(names)):
        heat = go.Heatmap(
            z=mean[..., index],
            x=_along(result, across, position_names),
            y=_along(result, upward, position_names),
            coloraxis="coloraxis",
            hovertemplate=f"{_axis_title(upward)} %{{y}}, {_axis_title(across)} %{{x}}: %{{z:.4g}}<extra></extra>",
        )
        figure.add_trace(heat, row=1, col=index + 1)
        figure.update_xaxes(title_text=_axis_title(across), row=1, col=index + 1)
    figure.update_yaxes(title_text=_axis_title(upward), row=1, col=1)
    bar = {"title": {"text": _TITLES[quantity], "side": "right"}, "thickness": 15}
    figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": low, "cmax": high, "colorbar": bar})
    return _finished(figure, title or f"{_TITLES[quantity]}: {_of(result)}", width=max(420 * len(names) + 120, 640))


def _tokens(
    result: LensResult,
    example: Coordinate | None,
    tokenizer: PreTrainedTokenizerBase | None,
    position_names: Sequence[str] | None,
    title: str | None,
) -> Any:
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
        columns, across_title = _along(result, across, position_names), _axis_title(across)
    else:
        upward, columns, across_title = result.axes[1], list(range(1, ids.shape[1] + 1)), "place"
    if across_title == "position":  # without positions that other prompts have and this one has not
        there = (ids >= 0).any(axis=0)
        ids, log_prob = ids[:, there], log_prob[:, there]
        columns = [column for column, is_there in zip(columns, there, strict=True) if is_there]
    names = [[_token_name(tokenizer, int(token)) for token in row] for row in ids]
    hover = [
        [f"{name}<br>token id {token}" for name, token in zip(row, ids_row, strict=True)]
        for row, ids_row in zip(names, ids.tolist(), strict=True)
    ]
    heat = token_heat_map(
        np.exp(log_prob.astype(np.float64)),
        names,
        hover=hover,
        columns=columns,
        rows=_along(result, upward, position_names),
        row_name=_axis_title(upward),
        colors="Blues",
    )
    figure = graph_objects().Figure(heat)
    figure.update_xaxes(title_text=across_title, type="category", tickangle=-45 if across_title == "position" else 0)
    figure.update_yaxes(title_text=_axis_title(upward), type="category")
    size = {"width": max(640, 90 * len(columns) + 160), "height": max(400, 26 * len(names) + 160)}
    return _finished(figure, title or f"most probable tokens, example {escaped(str(chosen))}", **size)


def _token_name(tokenizer: PreTrainedTokenizerBase | None, token: int) -> str:
    if token < 0:
        return ""
    return f"#{token}" if tokenizer is None else escaped(visible(token_text(tokenizer, token)))


def _finished(figure: Any, title: str, **layout: Any) -> Any:
    figure.update_layout(title={"text": title, "font": {"size": 15}}, template="plotly_white", font=FONT, **layout)
    return figure

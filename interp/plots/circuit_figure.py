"""Figures of circuits: a heat map of the strongest edges, and faithfulness by the size of a circuit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from interp.errors import InterpError
from interp.plots.curves import WIDE, Baseline, Curves, Series
from interp.plots.figure import Figure, figure_of, number
from interp.plots.heat_map import HeatMap
from interp.results.circuit_result import EdgeScores, FaithfulnessCurve
from interp.text import readable, visible

__all__ = ["edges_figure", "faithfulness_figure"]

_UNITS = {"probability": "", "log_probability": "nats", "kl": "nats", "logit_difference": "logits"}


def edges_figure(scores: EdgeScores, strongest: int = 20, *, title: str | None = None) -> Figure:
    """A heat map of nodes with the strongest edges; see `EdgeScores.plot`."""
    if strongest < 1:
        raise InterpError(f"strongest: expected at least 1, got {strongest}.")
    chosen = scores.to_frame().iloc[:strongest]
    senders = [str(name) for name in scores.along("sender") if name in set(chosen["sender"])]
    receivers = [str(name) for name in scores.along("receiver") if name in set(chosen["receiver"])]
    shown = scores.select(sender=senders, receiver=receivers)
    values = shown.score.astype(np.float64)  # (example, sender, receiver)
    examples = len(values)
    mean = values.mean(axis=0)
    half = 1.96 * values.std(axis=0, ddof=1) / math.sqrt(examples) if examples > 1 else np.zeros_like(mean)
    size = np.abs(mean)
    unknown = np.full(mean.shape, np.nan).tolist()
    heat = HeatMap(
        metric=scores.metric,
        title=f"Size of the score of {readable(scores.metric)}",
        unit=_UNITS.get(scores.metric, ""),
        note="",
        group=None,
        rows=senders,
        columns=receivers,
        mean=size.tolist(),
        low=unknown,
        high=unknown,
        n=np.full(mean.shape, examples).tolist(),
        top=max(float(np.nanmax(size)), 1e-9),
        row_label="Sender",
        column_label="Receiver",
        where="{row} to {column}",
        tips=[
            [f"size of {number(one)} ± {number(other)}" for one, other in zip(*line, strict=True)]
            for line in zip(mean.tolist(), half.tolist(), strict=True)
        ],
    )
    side = (330.0 - 52.0) / max(len(senders), len(receivers), 6)
    of = f"mean of {examples} examples" if examples > 1 else "one example"
    heading = title or f"The {len(chosen)} strongest edges, {scores.direction}: {of}"
    above = visible(heading).replace("␣", " ")
    frame = heat.frame(bar=True, tile=(max(18.0, side), max(12.0, side))).below(above)
    return figure_of([[(heat, frame)]], scale=0.8, title=above)


def faithfulness_figure(curve: FaithfulnessCurve, *, title: str | None = None) -> Figure:
    """A curve of faithfulness over proportions, with CPR and CMD; see `FaithfulnessCurve.plot`."""
    means = curve.faithfulness
    span = float(curve.clean.astype(np.float64).mean() - curve.corrupted.astype(np.float64).mean())
    examples = len(curve.circuit)
    half = np.zeros_like(means)
    if examples > 1:
        half = 1.96 * curve.circuit.astype(np.float64).std(axis=0, ddof=1) / math.sqrt(examples) / abs(span)
    series = Series(
        None, range(len(means)), means.tolist(), (means - half).tolist(), (means + half).tolist(),
        [examples] * len(means),
    )  # fmt: skip
    panel = Curves(
        metric="faithfulness",
        title="Faithfulness",
        unit="",
        note="",
        top=None,
        series=[series],
        baselines=[Baseline("the model", None, 1.0)],
        x_label="Edges in the circuit",
        x_names=[f"{100 * share:g} %" for share in curve.proportions],
    )
    heading = title or f"Faithfulness of {readable(curve.metric)}: CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f}"
    frame = replace(
        WIDE, width=WIDE.width - WIDE.right + 20, right=20, height=WIDE.height + 50, bottom=WIDE.bottom + 50
    )
    above = visible(heading).replace("␣", " ")
    return figure_of([[(panel, frame.below(above))]], scale=0.8, title=above)

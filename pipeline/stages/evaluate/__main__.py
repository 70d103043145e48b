"""Stage `evaluate`: compute curves with intervals from `lens.zarr`, and a few numbers that tell two runs apart.

    python -m pipeline.stages.evaluate        # in a run folder

Reads the section `evaluate` and `lens.zarr`; writes `metrics.json`, `curves.parquet` and `grids.parquet`, and for `dvc
plots` the same rows as `curves.csv` and `grids.csv`. One row of curves is one lens, metric, group, block and layer; one
row of grids is one lens, metric, group, source layer and target layer.

What is measured of each example stands in `pipeline.metrics`; a baseline has layer -1.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from interp.errors import nearest
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.section import ConfigError, load
from pipeline.files import write_json
from pipeline.metrics import ENTROPY_UNITS, METRICS, Floats, Measured, Metric
from pipeline.stages.common import stage_main
from pipeline.stages.evaluate.tables import (
    STATISTICS,
    Curve,
    CurveRow,
    GridRow,
    curve,
    leads,
    means_by_group,
    write_curves,
    write_grids,
)
from pipeline.store import Store, list_stores, open_store

__all__ = ["LensRows", "evaluate_lens", "summarize"]

log = logging.getLogger("interpipe")

BASELINE_LAYER = -1


class LensRows(NamedTuple):
    """The rows of one lens in the two tables."""

    curves: list[CurveRow]
    grids: list[GridRow]


def _rounded(value: float) -> float | None:
    """Ten significant digits: the store is float32; more would only tell apart two machines' arithmetic."""
    return float(f"{value:.10g}") if math.isfinite(value) else None


def evaluate_lens(name: str, store: Store, config: EvaluateConfig) -> LensRows:
    """Curves and grids of one lens.

    Arguments:
        name: of the lens.
        store: its store, `lens.zarr/NAME`.
        config: the statistics.

    Returns:
        Rows by metric, group, block and layers, in the store's order. A metric that is known for no example (precision
        at 1 where the model's own output was not collected) has no rows; a group without a token in any example has
        rows with n 0.
    """
    rows = LensRows([], [])
    lens = Measured(store, config.entropy_unit)
    for metric in METRICS.values():
        values = metric.measure(lens)
        if values is None:
            continue
        axes = () if metric.is_baseline else lens.axes
        for index, group in enumerate(lens.groups if metric.of_groups else [""]):
            _add(rows, (name, metric, group), axes, values[..., index] if metric.of_groups else values, store, config)
    return rows


def _add(
    rows: LensRows,
    of: tuple[str, Metric, str],
    axes: tuple[str, ...],
    values: Floats,
    store: Store,
    config: EvaluateConfig,
) -> None:
    """Add the rows of one metric of one lens and group to its tables.

    Arguments:
        rows: of the lens.
        of: name of the lens, metric, group.
        axes: what the axes of `values` after the first stand for.
        values: (example, *axes), NaN where the metric does not apply.
        store: of the lens.
        config: the statistics.
    """
    name, metric, group = of
    if np.isinf(values).any():
        log.warning(
            "lens %s: %d infinite values of %s are left out, `n` counts the rest. The model's numbers overflowed; "
            "model.dtype=float32 or bfloat16 prevents it.", name, int(np.isinf(values).sum()), metric.name,
        )  # fmt: skip
    if (metric.is_baseline or not metric.of_groups) and not np.isfinite(values).any():
        return
    cells = values.reshape(len(values), -1)
    result = curve(cells, config.confidence, config.bootstrap_samples, config.seed)
    numbers = [_numbers(result, cell) for cell in range(cells.shape[1])]
    if axes == ("source_layer", "target_layer"):
        targets = store.attributes["target_layers"]
        places = [(source, target) for source in store.attributes["source_layers"] for target in targets]
        rows.grids.extend(
            GridRow(name, metric.name, group, source, target, **cell)
            for (source, target), cell in zip(places, numbers, strict=True)
        )
        return
    blocks = store.attributes["blocks"] if "block" in axes else [""]
    layers = store.attributes["layers"] if "layer" in axes else [BASELINE_LAYER]
    rows.curves.extend(
        CurveRow(name, metric.name, group, block, layer, **numbers[at * len(blocks) + index])
        for index, block in enumerate(blocks)
        for at, layer in enumerate(layers)
    )


def _numbers(result: Curve, index: int) -> dict[str, Any]:
    """One cell's statistics, as both tables hold them."""
    values = {name: getattr(result, name)[index] for name in STATISTICS}
    return {name: int(value) if name == "n" else _rounded(value) for name, value in values.items()}


def _summary(rows: list[CurveRow], more_is_better: bool) -> dict[str, Any]:
    """First, last and best of one curve, each only where it is known."""
    known = [(row.mean, row.layer) for row in rows if row.mean is not None]
    numbers: dict[str, Any] = {"n": max(row.n for row in rows)}
    if known:
        best, layer = max(known, key=lambda point: (point[0], -point[1])) if more_is_better else min(known)
        word = "peak" if more_is_better else "lowest"
        numbers |= {word: best, f"{word}_layer": layer}
    for word, row in (("first", rows[0]), ("last", rows[-1])):
        if row.mean is not None:
            numbers[word] = row.mean
    return numbers


def summarize(rows: LensRows, examples: int) -> dict[str, Any]:
    """The numbers of one lens in `metrics.json`: nested mappings of finite numbers only.

    Arguments:
        rows: of one lens, as `evaluate_lens` gives them.
        examples: that the lens was run on.

    Returns:
        For each metric (and group, and block): `first` and `last` layer's mean, the highest (`peak`) or lowest mean and
        its layer, the earliest one in a tie, and the largest `n`; of a grid the highest or lowest mean, its layers and
        `n`. Then `baseline`, `leading_layers` (where each group leads) and `crossing_layer`: `a__b` is the layer at
        which b takes the lead from a (the last time, where it does so more than once); both are defined at
        `pipeline.stages.evaluate.tables.leads`.
    """
    curves: dict[tuple[str, ...], list[CurveRow]] = {}
    for row in rows.curves:
        curves.setdefault((row.metric, row.group, row.block), []).append(row)
    layers = next(
        ([row.layer for row in points] for key, points in curves.items() if not METRICS[key[0]].is_baseline), []
    )
    summary: dict[str, Any] = {"n": examples} | ({"layers": len(layers)} if layers else {})
    for (metric, group, block), points in curves.items():
        if METRICS[metric].is_baseline:
            kind = metric.removeprefix("baseline_").removesuffix("_probability")
            if points[0].mean is not None:
                summary.setdefault("baseline", {}).setdefault(kind, {})[group] = points[0].mean
            continue
        more_is_better = METRICS[metric].more_is_better != bool(block)  # a knock-out takes away
        _put(summary, (metric, group, block), _summary(points, more_is_better))
    for lead in leads(means_by_group(rows.curves), layers):
        span = summary.setdefault("leading_layers", {}).setdefault(lead.group, {"first": lead.first_layer, "count": 0})
        span["last"] = lead.last_layer
        span["count"] += sum(lead.first_layer <= layer <= lead.last_layer for layer in layers)
        if lead.taken_at is not None:
            crossing = summary.setdefault("crossing_layer", {})
            crossing[f"{lead.taken_from}__{lead.group}"] = _rounded(lead.taken_at)
    return summary | _summary_of_grids(rows.grids)


def _put(summary: dict[str, Any], path: tuple[str, ...], numbers: dict[str, Any]) -> None:
    """Set a nested entry; empty names of the path are left out."""
    *above, last = [name for name in path if name]
    for name in above:
        summary = summary.setdefault(name, {})
    summary[last] = numbers


def _summary_of_grids(rows: list[GridRow]) -> dict[str, Any]:
    """The best cell of each grid of one lens."""
    grids: dict[tuple[str, str], list[GridRow]] = {}
    for row in rows:
        grids.setdefault((row.metric, row.group), []).append(row)
    summary: dict[str, Any] = {}
    for (metric, group), cells in grids.items():
        summary["source_layers"] = len({row.source_layer for row in cells})
        summary["target_layers"] = len({row.target_layer for row in cells})
        numbers: dict[str, Any] = {"n": max(row.n for row in cells)}
        sign = 1 if METRICS[metric].more_is_better else -1
        known = [(sign * row.mean, -row.source_layer, -row.target_layer) for row in cells if row.mean is not None]
        if known:
            best, source, target = max(known)
            word = "peak" if sign == 1 else "lowest"
            numbers |= {word: sign * best, f"{word}_source_layer": -source, f"{word}_target_layer": -target}
        _put(summary, (metric, group), numbers)
    return summary


def _check(config: EvaluateConfig) -> None:
    if config.entropy_unit not in ENTROPY_UNITS:
        raise ConfigError(
            f"evaluate.entropy_unit: unknown unit {config.entropy_unit!r}.{nearest(config.entropy_unit, ENTROPY_UNITS)}"
        )


def run() -> dict[str, float]:
    """Run the stage in the current folder."""
    config = load(EvaluateConfig)
    _check(config)
    rows = LensRows([], [])
    metrics: dict[str, Any] = {}
    for name in list_stores("lens.zarr"):
        store = open_store(f"lens.zarr/{name}")
        lens_rows = evaluate_lens(name, store, config)
        examples = len(store.static("row"))
        metrics[name] = summarize(lens_rows, examples)
        rows.curves.extend(lens_rows.curves)
        rows.grids.extend(lens_rows.grids)
        log.info("%s: %d examples", name, examples)
    write_curves(rows.curves, Path())
    write_grids(rows.grids, Path())
    write_json("metrics.json", metrics)
    return {"rows": float(len(rows.curves) + len(rows.grids))}


if __name__ == "__main__":
    stage_main("evaluate", run)

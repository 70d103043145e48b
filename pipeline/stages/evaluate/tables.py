"""Compute statistics of curves over layers, and write the tables that hold them: `curves.parquet`, `grids.parquet`.

Statistics: means with two kinds of interval, which group leads where, where the lead changes. `values` is (example,
layer), float64, NaN where an example says nothing. Each table lies beside a CSV of the same rows for `dvc plots`; the
same rows give the same bytes.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from interp.errors import InterpError

__all__ = [
    "LEAD_FLOOR",
    "STATISTICS",
    "Curve",
    "CurveRow",
    "GridRow",
    "Lead",
    "bootstrap_interval",
    "curve",
    "leads",
    "means_by_group",
    "read_curves",
    "read_grids",
    "write_curves",
    "write_grids",
]


STATISTICS = ("mean", "std", "n", "normal_low", "normal_high", "bootstrap_low", "bootstrap_high")
_TEXT = ("lens", "metric", "group", "block")
_WHOLE = ("layer", "source_layer", "target_layer", "n")


class CurveRow(NamedTuple):
    """One row of `curves.parquet`; None where a number cannot be computed (`std` of one example, say).

    `block` is the set of tokens that a knock-out blocks, empty for every other lens; `layer` is there the first of the
    window.
    """

    lens: str
    metric: str
    group: str
    block: str
    layer: int
    mean: float | None
    std: float | None
    n: int
    normal_low: float | None
    normal_high: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None


class GridRow(NamedTuple):
    """One row of `grids.parquet`: a cell of a grid over layers; None as in `CurveRow`."""

    lens: str
    metric: str
    group: str
    source_layer: int
    target_layer: int
    mean: float | None
    std: float | None
    n: int
    normal_low: float | None
    normal_high: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None


Row = TypeVar("Row", CurveRow, GridRow)


def write_curves(rows: Sequence[CurveRow], folder: Path) -> None:
    """Write `curves.parquet` and `curves.csv`; each appears by one rename."""
    _write(rows, CurveRow, folder / "curves")


def write_grids(rows: Sequence[GridRow], folder: Path) -> None:
    """Write `grids.parquet` and `grids.csv`, also where no lens has a grid; each appears by one rename."""
    _write(rows, GridRow, folder / "grids")


def read_curves(path: str | Path = "curves.parquet") -> list[CurveRow]:
    """Read what the stage `evaluate` wrote.

    Raises:
        InterpError: it has not run there.
    """
    return _read(Path(path), CurveRow)


def read_grids(path: str | Path = "grids.parquet") -> list[GridRow]:
    """Read what the stage `evaluate` wrote; no rows where no lens has a grid.

    Raises:
        InterpError: it has not run there.
    """
    return _read(Path(path), GridRow)


def means_by_group(rows: Iterable[CurveRow]) -> dict[str, list[float]]:
    """Mean probability by layer of each group of one lens; NaN where no example has the group. None for a knock-out."""
    means: dict[str, list[float]] = {}
    for row in rows:
        if row.metric == "probability" and not row.block:
            means.setdefault(row.group, []).append(math.nan if row.mean is None else row.mean)
    return means


def _type(column: str) -> pa.DataType:
    return pa.string() if column in _TEXT else pa.int32() if column in _WHOLE else pa.float64()


def _write(rows: Sequence[Row], kind: type[Row], stem: Path) -> None:
    schema = pa.schema([(name, _type(name)) for name in kind._fields])
    columns: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate(kind._fields)}
    staged = stem.with_name(f".{stem.name}.parquet.incoming")
    parquet.write_table(pa.table(columns, schema=schema), staged, compression="zstd", version="2.6")
    os.replace(staged, stem.with_suffix(".parquet"))
    staged = stem.with_name(f".{stem.name}.csv.incoming")
    with staged.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(kind._fields)
        writer.writerows(rows)  # None becomes an empty field
    os.replace(staged, stem.with_suffix(".csv"))


def _read(path: Path, kind: type[Row]) -> list[Row]:
    if not path.is_file():
        raise InterpError(
            f"expected {path}, found none. It is made by `python -m pipeline.stages.evaluate` "
            "(or `dvc repro evaluate`) in the run folder."
        )
    columns = parquet.read_table(path).to_pydict()
    return [kind(*values) for values in zip(*(columns[name] for name in kind._fields), strict=True)]


Floats = NDArray[np.float64]

LEAD_FLOOR = 0.01  # a mean probability below this is noise between groups that nothing speaks for: nobody leads
_RESAMPLED_BYTES = 1 << 25  # of the table (resample, example) that is held at once


@dataclass(frozen=True)
class Curve:
    """One quantity by layer; every field is (layer,). NaN where it cannot be computed.

    Arguments:
        n: examples that count.
        mean, std: over these examples; `std` is the unbiased one (n - 1), NaN for n < 2.
        normal_low, normal_high: mean -+ z * std / sqrt(n), with z the normal quantile of the confidence.
        bootstrap_low, bootstrap_high: percentile bootstrap of the mean (Efron 1979).
    """

    n: NDArray[np.int64]
    mean: Floats
    std: Floats
    normal_low: Floats
    normal_high: Floats
    bootstrap_low: Floats
    bootstrap_high: Floats


def curve(values: Floats, confidence: float, resamples: int, seed: int) -> Curve:
    """Mean over examples with its intervals, at every layer.

    Arguments:
        values: (example, layer); what is not finite is left out, and `n` says so.
        confidence: of both intervals, between 0 and 1.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    valid = np.isfinite(values)
    n = valid.sum(axis=0)
    kept = np.where(valid, values, 0.0)
    mean = np.divide(kept.sum(axis=0), n, out=np.full(n.shape, np.nan), where=n > 0)
    squares = np.where(valid, (kept - mean) ** 2, 0.0).sum(axis=0)
    std = np.sqrt(np.divide(squares, n - 1, out=np.full(n.shape, np.nan), where=n > 1))
    half = NormalDist().inv_cdf((1 + confidence) / 2) * std / np.sqrt(np.maximum(n, 1))
    low, high = bootstrap_interval(values, confidence, resamples, seed)
    return Curve(n, mean, std, mean - half, mean + half, low, high)


def bootstrap_interval(values: Floats, confidence: float, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Percentile bootstrap interval of the mean, at every layer.

    Which examples a resample draws is decided by the seed and the number of examples that count alone, so that layers
    with the same examples, and any two groups with them, share their resamples: differences between them are not
    blurred by differences between draws. It draws exactly as `scipy.stats.bootstrap(method="percentile")` does.

    Arguments:
        values: (example, layer); what is not finite is left out before anything is drawn.
        confidence: between 0 and 1.
        resamples: number of resamples.
        seed: of the draws.

    Returns:
        (low, high), each (layer,); NaN for a layer with fewer than two examples.
    """
    valid = np.isfinite(values)
    num_layers = values.shape[1]
    low, high = np.full(num_layers, np.nan), np.full(num_layers, np.nan)
    if not num_layers:
        return low, high
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    masks, mask_of_layer = np.unique(valid, axis=1, return_inverse=True)  # nearly always one mask for all layers
    for index in range(masks.shape[1]):
        rows, layers = np.flatnonzero(masks[:, index]), np.flatnonzero(mask_of_layer == index)
        if rows.size < 2:
            continue
        means = _resampled_means(values[np.ix_(rows, layers)], resamples, seed)
        low[layers], high[layers] = np.quantile(means, tails, axis=0)
    return low, high


def _resampled_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Means (resample, layer) over examples drawn with replacement, by how often each example is drawn."""
    n = len(values)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _RESAMPLED_BYTES // (8 * n))
    for start in range(0, resamples, step):  # consecutive draws from one generator: the step changes no number
        size = min(step, resamples - start)
        drawn = generator.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means[start : start + size] = counts.astype(np.float64) @ values / n
    return means


@dataclass(frozen=True)
class Lead:
    """Consecutive measured layers at which the same group leads.

    Arguments:
        group: the leader.
        first_layer, last_layer: of the stretch, both included.
        taken_from: who led the layer just before; None where nobody did.
        taken_at: the layer, between that one and `first_layer`, at which the two means are equal if both run straight
            from one measured layer to the next; None without `taken_from`.
    """

    group: str
    first_layer: int
    last_layer: int
    taken_from: str | None = None
    taken_at: float | None = None


def leads(means: Mapping[str, Sequence[float]], layers: Sequence[int], floor: float = LEAD_FLOOR) -> list[Lead]:
    """The stretches of layers at which one group leads, from the first layer to the last, and where the lead changes.

    A group leads a layer when its mean is the highest there and at least `floor`. Where no mean reaches the floor
    nobody leads; NaN never leads. In a tie the group that led the layer before goes on, else the first in order leads.

    The lead crosses from a to b when a leads a measured layer l0 and b the next one l1. With a's advantage at l0
    A = mean_a(l0) - mean_b(l0) and b's at l1 B = mean_b(l1) - mean_a(l1) it crosses at l0 + (l1 - l0) * A / (A + B).
    Curves that cross below the leader are not looked at, and after layers without a leader nothing is taken from
    anybody.

    Arguments:
        means: group -> mean at each of `layers`.
        layers: the measured layers, ascending.
        floor: smallest mean that can lead.
    """
    stretches: list[Lead] = []
    previous: str | None = None
    for index, layer in enumerate(layers):
        here = {group: values[index] for group, values in means.items() if values[index] >= floor}
        leader = max(here, key=lambda group: here[group], default=None)
        if leader is not None and previous in here and here[previous] == here[leader]:
            leader = previous
        if leader is not None and leader == previous:
            stretches[-1] = replace(stretches[-1], last_layer=layer)
        elif leader is not None:
            stretches.append(Lead(leader, layer, layer, *_taken(means, layers, index, previous, leader)))
        previous = leader
    return stretches


def _taken(
    means: Mapping[str, Sequence[float]], layers: Sequence[int], index: int, before: str | None, after: str
) -> tuple[str, float] | tuple[None, None]:
    """From whom the lead at `layers[index]` was taken and at which layer; see `leads`."""
    if before is None:
        return None, None
    behind = means[before][index - 1] - means[after][index - 1]
    ahead = means[after][index] - means[before][index]
    if not np.isfinite(behind + ahead):
        return None, None  # one of the two was not measured at one of the two layers
    start, stop = layers[index - 1], layers[index]
    return before, float(start + (stop - start) * behind / (behind + ahead))

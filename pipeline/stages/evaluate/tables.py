"""The tables of a run: `curves.parquet`, numbers by layer, and `grids.parquet`, numbers by source and target layer.

Each lies beside a CSV of the same rows for `dvc plots`. The same rows give the same bytes.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as parquet

from interp.errors import InterpError

__all__ = [
    "STATISTICS",
    "CurveRow",
    "GridRow",
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

"""Stage `evaluate`: from `lens.zarr` to curves with intervals and a few numbers that tell two runs apart.

    python -m pipeline.stages.evaluate        # in a run folder

Reads the section `evaluate` and `lens.zarr`; writes `metrics.json`, `curves.parquet` and, for `dvc plots`, the same
rows as `curves.csv`. One row is one lens, metric, group and layer:

| metric | of an example at a layer | group |
|---|---|---|
| `probability` | summed probability of the group's tokens | yes |
| `top1_accuracy` | 1 where the most probable token is one of the group's | yes |
| `rank` | rank of the group's best token, 0 for the most probable | yes |
| `entropy_bits` or `entropy_nats` | entropy of the lens's distribution | |
| `kl_nats` | KL(lens at the last layer, lens at this layer), in nats | |
| `precision_at_1` | 1 where the lens's top token is the model's own (Ghandeharioun et al. 2024) | |
| `surprisal_nats` | -ln of the model's own probability of the lens's top token (same paper) | |
| `baseline_target_probability` | `probability` in the target prompt's unpatched run; layer -1 | yes |
| `baseline_source_probability` | `probability` in the source prompt's unpatched run; layer -1 | yes |
"""

from __future__ import annotations

import csv
import logging
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from interp.errors import InterpError, nearest
from pipeline.config.base import ConfigError
from pipeline.config.evaluate import EvaluateConfig, load_evaluate_config
from pipeline.stages.common import stage_main, write_json
from pipeline.stages.statistics import curve, leads
from pipeline.store import Store, list_stores, open_store

__all__ = ["CurveRow", "evaluate_lens", "read_curves", "summarize"]

log = logging.getLogger("interpipe")

Floats = NDArray[np.float64]
BASELINE_LAYER = -1
ENTROPY_UNITS = {"bits": math.log(2), "nats": 1.0}  # nats in one unit
# Where more is better the summary names the highest layer, elsewhere the lowest one.
MORE_IS_BETTER = ("probability", "top1_accuracy", "precision_at_1")


class CurveRow(NamedTuple):
    """One row of `curves.parquet`; None where a number cannot be computed (`std` of one example, say)."""

    lens: str
    metric: str
    group: str
    layer: int
    mean: float | None
    std: float | None
    n: int
    normal_low: float | None
    normal_high: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None


_TYPES: dict[type, pa.DataType] = {str: pa.string(), int: pa.int32(), float: pa.float64()}
_SCHEMA = pa.schema(
    [(name, _TYPES[str] if name in ("lens", "metric", "group") else _TYPES[int]) for name in CurveRow._fields[:4]]
    + [(name, _TYPES[int] if name == "n" else _TYPES[float]) for name in CurveRow._fields[4:]]
)


def _rounded(value: float) -> float | None:
    """Ten significant digits: the store is float32; more would only tell apart two machines' arithmetic."""
    return float(f"{value:.10g}") if math.isfinite(value) else None


def _quantities(store: Store, entropy_unit: str) -> Iterator[tuple[str, str, Floats]]:
    """(metric, group, values (example, layer)) of all that a lens measured; NaN where it does not apply."""
    groups: list[str] = store.attributes["groups"]
    if groups:
        log_prob = store.read("log_prob").astype(np.float64)  # (example, layer, group)
        probability = np.exp(log_prob)
        rank = np.where(np.isnan(log_prob), np.nan, store.read("rank"))  # an empty group has no rank
        hit = np.where(np.isnan(rank), np.nan, rank == 0)
        for index, group in enumerate(groups):
            yield "probability", group, probability[..., index]
        for index, group in enumerate(groups):
            yield "top1_accuracy", group, hit[..., index]
        for index, group in enumerate(groups):
            yield "rank", group, rank[..., index]
    yield f"entropy_{entropy_unit}", "", store.read("entropy").astype(np.float64) / ENTROPY_UNITS[entropy_unit]
    yield "kl_nats", "", store.read("kl").astype(np.float64)
    surprisal = store.read("surprisal").astype(np.float64)
    top, model_top = store.read("top_ids", top=0), store.read("model_top_id")[:, None]
    yield "precision_at_1", "", np.where(model_top < 0, np.nan, top == model_top)
    yield "surprisal_nats", "", surprisal
    for name in ("target", "source"):
        array = f"baseline_{name}_log_prob"
        if groups and array in store.arrays:
            baseline = np.exp(store.read(array).astype(np.float64))  # (example, group)
            for index, group in enumerate(groups):
                yield f"baseline_{name}_probability", group, baseline[:, index : index + 1]


def evaluate_lens(name: str, store: Store, config: EvaluateConfig) -> list[CurveRow]:
    """Curves of one lens.

    Arguments:
        name: of the lens.
        store: its store, `lens.zarr/NAME`.
        config: the statistics.

    Returns:
        Rows by metric, group and layer, in the store's order. A metric that is known for no example (precision at 1
        where the model's own output was not collected) has no rows; a group without a token in any example has rows
        with n 0.
    """
    rows = []
    for metric, group, values in _quantities(store, config.entropy_unit):
        if np.isinf(values).any():
            log.warning(
                "lens %s: %d infinite values of %s are left out, `n` counts the rest. The model's numbers overflowed; "
                "model.dtype=float32 or bfloat16 prevents it.", name, int(np.isinf(values).sum()), metric,
            )  # fmt: skip
        is_grouped = metric in ("probability", "top1_accuracy", "rank")
        if not is_grouped and not np.isfinite(values).any():
            continue
        layers = [BASELINE_LAYER] if metric.startswith("baseline") else store.attributes["layers"]
        result = curve(values, config.confidence, config.bootstrap_samples, config.seed)
        for index, layer in enumerate(layers):
            numbers = {field: getattr(result, field)[index] for field in CurveRow._fields[4:]}
            n = int(numbers.pop("n"))
            rounded = {field: _rounded(number) for field, number in numbers.items()}
            rows.append(CurveRow(name, metric, group, int(layer), n=n, **rounded))
    return rows


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


def summarize(rows: list[CurveRow], examples: int) -> dict[str, Any]:
    """The numbers of one lens in `metrics.json`: nested mappings of finite numbers only.

    Arguments:
        rows: of one lens, as `evaluate_lens` gives them.
        examples: that the lens was run on.

    Returns:
        For each metric (and group): `first` and `last` layer's mean, the highest (`peak`) or lowest mean and its layer,
        the earliest one in a tie, and the largest `n`. Then `baseline`, `leading_layers` (where each group leads) and
        `crossing_layer`: `a__b` is the layer at which b takes the lead from a (the last time, where it does so more
        than once); both are defined at `pipeline.stages.statistics.leads`.
    """
    curves: dict[tuple[str, str], list[CurveRow]] = {}
    for row in rows:
        curves.setdefault((row.metric, row.group), []).append(row)
    layers = [row.layer for row in next(iter(curves.values()))]
    summary: dict[str, Any] = {"n": examples, "layers": len(layers)}
    for (metric, group), points in curves.items():
        if metric.startswith("baseline"):
            kind = metric.removeprefix("baseline_").removesuffix("_probability")
            if points[0].mean is not None:
                summary.setdefault("baseline", {}).setdefault(kind, {})[group] = points[0].mean
            continue
        numbers = _summary(points, metric in MORE_IS_BETTER)
        if group:
            summary.setdefault(metric, {})[group] = numbers
        else:
            summary[metric] = numbers
    for lead in leads(means_by_group(rows), layers):
        span = summary.setdefault("leading_layers", {}).setdefault(lead.group, {"first": lead.first_layer, "count": 0})
        span["last"] = lead.last_layer
        span["count"] += sum(lead.first_layer <= layer <= lead.last_layer for layer in layers)
        if lead.taken_at is not None:
            crossing = summary.setdefault("crossing_layer", {})
            crossing[f"{lead.taken_from}__{lead.group}"] = _rounded(lead.taken_at)
    return summary


def means_by_group(rows: Iterable[CurveRow]) -> dict[str, list[float]]:
    """Mean probability by layer of each group of one lens; NaN where no example has the group."""
    means: dict[str, list[float]] = {}
    for row in rows:
        if row.metric == "probability":
            means.setdefault(row.group, []).append(math.nan if row.mean is None else row.mean)
    return means


def write_curves(rows: list[CurveRow], parquet_path: Path, csv_path: Path) -> None:
    """Write the rows as parquet and as CSV, the same bytes for the same rows; each appears by one rename."""
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(CurveRow._fields)}, schema=_SCHEMA)
    staged = parquet_path.with_name(f".{parquet_path.name}.incoming")
    parquet.write_table(table, staged, compression="zstd", version="2.6")
    os.replace(staged, parquet_path)
    staged = csv_path.with_name(f".{csv_path.name}.incoming")
    with staged.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(CurveRow._fields)
        writer.writerows(rows)  # None becomes an empty field
    os.replace(staged, csv_path)


def read_curves(path: str | Path = "curves.parquet") -> list[CurveRow]:
    """Read what this stage wrote.

    Raises:
        InterpError: it has not run there.
    """
    path = Path(path)
    if not path.is_file():
        raise InterpError(
            f"expected {path}, found none. It is made by `python -m pipeline.stages.evaluate` "
            "(or `dvc repro evaluate`) in the run folder."
        )
    columns = parquet.read_table(path).to_pydict()
    return [CurveRow(*values) for values in zip(*(columns[name] for name in CurveRow._fields), strict=True)]


def _check(config: EvaluateConfig) -> None:
    if config.entropy_unit not in ENTROPY_UNITS:
        raise ConfigError(
            f"evaluate.entropy_unit: unknown unit {config.entropy_unit!r}.{nearest(config.entropy_unit, ENTROPY_UNITS)}"
        )
    if not 0 < config.confidence < 1:
        raise ConfigError(f"evaluate.confidence: expected a number between 0 and 1, got {config.confidence}.")
    if config.bootstrap_samples < 1:
        raise ConfigError(f"evaluate.bootstrap_samples: expected at least 1, got {config.bootstrap_samples}.")


def run() -> dict[str, float]:
    """Run the stage in the current folder."""
    config = load_evaluate_config()
    _check(config)
    rows: list[CurveRow] = []
    metrics: dict[str, Any] = {}
    for name in list_stores("lens.zarr"):
        store = open_store(f"lens.zarr/{name}")
        lens_rows = evaluate_lens(name, store, config)
        examples = len(store.static("row"))
        metrics[name] = summarize(lens_rows, examples)
        rows += lens_rows
        log.info("%s: %d examples, %d layers", name, examples, metrics[name]["layers"])
    write_curves(rows, Path("curves.parquet"), Path("curves.csv"))
    write_json("metrics.json", metrics)
    return {"rows": float(len(rows))}


if __name__ == "__main__":
    stage_main("evaluate", run)

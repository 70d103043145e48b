"""What a lens measured, example by example: from the arrays of its store to the metrics of the tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.store import Store

__all__ = ["ENTROPY_UNITS", "Quantity", "quantities"]

Floats = NDArray[np.float64]
ENTROPY_UNITS = {"bits": math.log(2), "nats": 1.0}  # nats in one unit


class Quantity(NamedTuple):
    """One metric of every example.

    Arguments:
        metric: its name.
        group: the group of tokens that it is about; empty: none.
        axes: what the axes of `values` after the first stand for: none for a baseline, else `layer`, or `source_layer`
            and `target_layer`, or `layer` and `block`.
        values: (example, *axes), NaN where it does not apply.
    """

    metric: str
    group: str
    axes: tuple[str, ...]
    values: Floats


def quantities(store: Store, entropy_unit: str) -> Iterator[Quantity]:
    """All that a lens measured.

    Arguments:
        store: of the lens, in `lens.zarr`.
        entropy_unit: `bits` or `nats`.
    """
    if "log_prob" in store.arrays:
        yield from _readings(store, entropy_unit)
        yield from _baselines(store)
    if "token_ids" in store.arrays:
        yield from _generations(store)


def _readings(store: Store, entropy_unit: str) -> Iterator[Quantity]:
    """Of a lens that reads a distribution over the vocabulary in each cell of its axes."""
    groups: list[str] = store.attributes["groups"]
    axes = store.dimensions("entropy")[1:]
    if groups:
        log_prob = store.read("log_prob").astype(np.float64)  # (example, *axes, group)
        by_group = {"probability": np.exp(log_prob)}
        rank = np.where(np.isnan(log_prob), np.nan, store.read("rank"))  # an empty group has no rank
        by_group["top1_accuracy"] = np.where(np.isnan(rank), np.nan, rank == 0)
        by_group["rank"] = rank
        if "block" in axes:  # what blocking leaves of the probability
            without = store.read("baseline_source_log_prob").astype(np.float64)  # (example, group)
            by_group["relative_probability"] = np.exp(log_prob - without[:, None, None, :])
        for metric, values in by_group.items():
            for index, group in enumerate(groups):
                yield Quantity(metric, group, axes, values[..., index])
    entropy = store.read("entropy").astype(np.float64) / ENTROPY_UNITS[entropy_unit]
    yield Quantity(f"entropy_{entropy_unit}", "", axes, entropy)
    yield Quantity("kl_nats", "", axes, store.read("kl").astype(np.float64))
    surprisal = store.read("surprisal").astype(np.float64)
    model_top = store.read("model_top_id").reshape(-1, *(1 for _ in axes))
    hit = np.where(model_top < 0, np.nan, store.read("top_ids", top=0) == model_top)
    yield Quantity("precision_at_1", "", axes, hit)
    yield Quantity("surprisal_nats", "", axes, surprisal)


def _baselines(store: Store) -> Iterator[Quantity]:
    """Of the groups' probability without the lens."""
    for name in ("target", "source"):
        array = f"baseline_{name}_log_prob"
        if store.attributes["groups"] and array in store.arrays:
            baseline = np.exp(store.read(array).astype(np.float64))  # (example, group)
            for index, group in enumerate(store.attributes["groups"]):
                yield Quantity(f"baseline_{name}_probability", group, (), baseline[:, index])


def _generations(store: Store) -> Iterator[Quantity]:
    """Of a lens that generates text in each cell of its axes."""
    found, axes = store.read("answer_found"), store.dimensions("num_tokens")[1:]  # (example, *axes, group)
    for index, group in enumerate(store.attributes["groups"]):
        values = np.where(found[..., index] < 0, np.nan, found[..., index])
        yield Quantity("generation_accuracy", group, axes, values)
    yield Quantity("generated_tokens", "", axes, store.read("num_tokens").astype(np.float64))

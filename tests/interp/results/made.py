"""Results made of random numbers, of any axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interp.results import LensResult

NAMES = ("it", "en")


def random_result(
    coordinates: Mapping[str, Sequence[int | str]], names: tuple[str, ...] = NAMES, top_k: int = 3, **changes: Any
) -> LensResult:
    """A result over some axes, the same at every call."""
    generator = np.random.default_rng(0)
    shape = tuple(len(values) for values in coordinates.values())
    prompt = tuple(len(values) for axis, values in coordinates.items() if axis in ("example", "position"))
    arrays: dict[str, Any] = {
        "log_prob": -5 * generator.random((*shape, len(names))),
        "rank": generator.integers(0, 9, (*shape, len(names))),
        "top_ids": generator.integers(0, 90, (*shape, top_k)),
        "top_log_prob": -np.sort(3 * generator.random((*shape, top_k)), axis=-1),
        "entropy": generator.random(shape),
        "kl": generator.random(shape),
        "surprisal": generator.random(shape),
        "model_top_id": generator.integers(0, 90, prompt),
    }
    return LensResult(coordinates=coordinates, group_names=names, **{**arrays, **changes})

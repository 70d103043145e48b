"""What the stage `lens` knows of a lens, whatever its kind: examples, the arrays of its store, a block's numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.config.lens import LensConfig
from pipeline.stages.lenses.examples import Examples
from pipeline.stages.lenses.inputs import Inputs
from pipeline.store import ArraySpec, StoreWriter

__all__ = ["FORMAT", "Arrays", "Config", "Lens"]

FORMAT = "interpipe.lens/1"
Config = TypeVar("Config", bound=LensConfig)
Arrays = dict[str, tuple[str, tuple[str, ...]]]
"""Name of an array -> its dtype and its dimensions, the first of them `example`."""


class Lens(ABC, Generic[Config]):
    """One lens of a config, with all that it needs; a subclass finds that when it is made.

    Attributes:
        name: of the lens.
        config: its config.
        inputs: of the run.
        examples: what it is run on.
        axes: what its numbers stand over besides examples: name -> coordinates (`layer` -> the layers that it reads).
            The store has them as static arrays, and as attributes (`layers`).
    """

    token_arrays: tuple[str, ...] = ()  # which arrays hold token ids

    def __init__(
        self, name: str, config: Config, inputs: Inputs, examples: Examples, axes: Mapping[str, Sequence[Any]]
    ) -> None:
        self.name = name
        self.config = config
        self.inputs = inputs
        self.examples = examples
        self.axes = {axis: list(coordinates) for axis, coordinates in axes.items()}

    @abstractmethod
    def arrays(self) -> Arrays:
        """The arrays of its store."""

    @abstractmethod
    def compute(self, rows: range) -> dict[str, NDArray]:
        """The arrays of one block of examples."""

    def num_tokens(self, rows: range) -> int:
        """How many tokens of prompts the model is run on for a block, at most."""
        return 0

    def lengths(self) -> dict[str, int]:
        """The length of every dimension."""
        lengths = {"example": len(self.examples.rows), "group": len(self.examples.groups)}
        return lengths | {axis: len(coordinates) for axis, coordinates in self.axes.items()}

    def specs(self) -> list[ArraySpec]:
        """The arrays of its store, with their shapes."""
        lengths = self.lengths()
        return [
            ArraySpec(name, dimensions, tuple(lengths[dimension] for dimension in dimensions), dtype)
            for name, (dtype, dimensions) in self.arrays().items()
        ]

    def static(self) -> dict[str, tuple[tuple[str, ...], NDArray]]:
        """The static arrays of its store: the examples' rows, and each axis that is counted."""
        counted = {axis: values for axis, values in self.axes.items() if all(isinstance(v, int) for v in values)}
        return {
            "row": (("example",), np.array(self.examples.rows, dtype=np.int32)),
            **{axis: ((axis,), np.array(values, dtype=np.int32)) for axis, values in counted.items()},
        }

    def attributes(self) -> dict[str, Any]:
        """The attributes of its store that are known before it is computed."""
        tokens, labels = self.inputs.tokens, self.inputs.tokens.manifest["groups"]
        return {
            "format": FORMAT,
            "name": self.name,
            "kind": self.config.kind,
            "examples": self.examples.dataset,
            **{f"{axis}s": values for axis, values in self.axes.items()},
            "groups": self.examples.groups,
            "group_labels": {group: labels.get(group, group) for group in self.examples.groups},
            "units": "nats",
            "model": self.inputs.activations.attributes["model"],
            "data_digest": tokens.manifest["data_digest"],
            "config": asdict(self.config),
        }

    def late_attributes(self, writer: StoreWriter) -> dict[str, Any]:
        """The attributes that only the finished blocks tell."""
        return {}

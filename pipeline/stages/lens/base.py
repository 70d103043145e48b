"""A lens as the stage `lens` runs it: examples, the arrays of its store, a block's numbers.

Most kinds read a distribution over the vocabulary (`ReadingLens`), many of them after a patch (`PatchedLens`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from interp.lenses import Latents, logit_lens
from interp.results import LensResult
from pipeline.config.lens_base import IntoTarget, LensConfig
from pipeline.stages.lens.inputs import Examples, Inputs, StoredLatents, find_last, latents_of, patched_examples
from pipeline.store import ArraySpec, StoreWriter

__all__ = ["FORMAT", "Arrays", "Config", "Lens", "PatchedLens", "ReadingLens"]


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


Into = TypeVar("Into", bound=IntoTarget)


class ReadingLens(Lens[Config]):
    """A lens that reads a distribution over the vocabulary in every cell of its axes.

    Attributes:
        top_k: how many top tokens are kept.
        output: the last residual stream at the source prompts' last token; None: not collected.
    """

    token_arrays = ("top_ids", "model_top_id")

    def __init__(
        self,
        name: str,
        config: Config,
        inputs: Inputs,
        examples: Examples,
        axes: Mapping[str, Sequence[Any]],
        *,
        top_k: int,
        batch_size: int,
    ) -> None:
        super().__init__(name, config, inputs, examples, axes)
        self.top_k = top_k
        self.batch_size = batch_size
        self.output = find_last(inputs.activations, "last", inputs.model.num_layers)

    def lengths(self) -> dict[str, int]:
        """The length of every dimension."""
        return {**super().lengths(), "top": self.top_k}

    def attributes(self) -> dict[str, Any]:
        """The attributes of its store that are known before it is computed."""
        return {**super().attributes(), "top_k": self.top_k}

    def arrays(self) -> Arrays:
        """What `LensResult` holds, and the groups' log-probabilities without the lens."""
        cell = ("example", *self.axes)
        return {
            "log_prob": ("float32", (*cell, "group")),
            "rank": ("int32", (*cell, "group")),
            "top_ids": ("int32", (*cell, "top")),
            "top_log_prob": ("float32", (*cell, "top")),
            "entropy": ("float32", cell),
            "kl": ("float32", cell),
            "surprisal": ("float32", cell),
            "model_top_id": ("int32", ("example",)),
            "baseline_source_log_prob": ("float32", ("example", "group")),
        }

    def own_latents(self, position: str) -> StoredLatents | None:
        """The last residual stream at a position, from which the model's own prediction there follows; None: not known.

        The mean of several prompts' states is no state of the model's own, so nothing is known of what it would say.
        """
        single = all(len(sources) == 1 for sources in self.examples.sources)
        return find_last(self.inputs.activations, position, self.inputs.model.num_layers) if single else None

    def values(self, result: LensResult, rows: range) -> dict[str, NDArray]:
        """A result as the arrays of the store."""
        values: dict[str, NDArray] = dict(result.arrays())
        if "baseline" in values:
            values["baseline_target_log_prob"] = values.pop("baseline")
        return values | {"baseline_source_log_prob": self._source_baseline(rows)}

    def _source_baseline(self, rows: range) -> NDArray:
        """(example, group), log-probability of the groups after the unpatched source prompts; NaN where not known.

        With several sources, the logarithm of the mean probability over them.
        """
        sources, groups = self.examples.sources[rows.start : rows.stop], self.examples.answers[rows.start : rows.stop]
        if self.output is None:
            return np.full((len(sources), len(self.examples.groups)), np.nan, dtype=np.float32)
        flat = [(example, row) for example, prompts in enumerate(sources) for row in prompts]
        log_prob = logit_lens(
            self.inputs.model,
            Latents(self.output.read([[row] for _, row in flat]), self.output.layers),
            [groups[example] for example, _ in flat],
            top_k=1,
            batch_size=self.batch_size,
            remote=self.inputs.remote,
        ).log_prob[:, 0]  # (example and source, group)
        starts = np.cumsum([0, *(len(prompts) for prompts in sources)])
        counts = np.log(np.diff(starts)).astype(np.float32)[:, None]
        return np.logaddexp.reduceat(log_prob, starts[:-1], axis=0) - counts


class PatchedLens(ReadingLens[Into]):
    """A lens that writes collected states into target prompts and reads what the model then says.

    Attributes:
        latents: the states.
        own: the last residual stream at the sources' position; None: not known.
    """

    def __init__(
        self,
        name: str,
        config: Into,
        inputs: Inputs,
        axes: Mapping[str, Sequence[Any]],
        *,
        needed: Sequence[int],
        top_k: int,
    ) -> None:
        examples = patched_examples(name, config, inputs.tokens, inputs.model.tokenizer)
        super().__init__(name, config, inputs, examples, axes, top_k=top_k, batch_size=config.batch_size)
        self.latents = latents_of(name, config, inputs, examples, needed)
        self.own = self.own_latents(config.source_position)

    def arrays(self) -> Arrays:
        """As those of every reading, and the groups after the unpatched target prompts."""
        return {**super().arrays(), "baseline_target_log_prob": ("float32", ("example", "group"))}

    def num_tokens(self, rows: range) -> int:
        """How many tokens of target prompts a plain way would run for a block: all, for each cell of the axes."""
        cells = math.prod(len(coordinates) for coordinates in self.axes.values())
        return cells * sum(len(self.examples.target_ids[row]) for row in rows)

    def source(self, rows: range) -> Latents:
        """The states of one block of examples."""
        return self.latents.source(self.examples.sources[rows.start : rows.stop], self.own)

    def target(self, rows: range) -> dict[str, Any]:
        """What it is written into, and what is read there."""
        block = slice(rows.start, rows.stop)
        return {
            "target_prompts": self.examples.target_ids[block],
            "target_positions": [[position] for position in self.examples.target_positions[block]],
            "targets": self.examples.answers[block],
        }

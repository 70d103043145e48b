"""Lenses that read a distribution over the vocabulary: what they store of it, and what the model says without them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from interp.lenses import logit_lens
from interp.results import LensResult
from pipeline.config.lens import PatchedConfig
from pipeline.stages.lenses.base import Arrays, Config, Lens
from pipeline.stages.lenses.examples import Examples, patched_examples
from pipeline.stages.lenses.inputs import Inputs, latents_of
from pipeline.stages.lenses.latents import Latents, find_last

__all__ = ["PatchedLens", "ReadingLens"]

Into = TypeVar("Into", bound=PatchedConfig)


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

    def own_latents(self, position: str) -> Latents | None:
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
            self.output.read([[row] for _, row in flat]),
            [groups[example] for example, _ in flat],
            layers=self.output.layers,
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

    def reference(self, rows: range) -> Tensor | None:
        """(example, hidden_size), the last residual stream at the sources' position; None: not known."""
        return None if self.own is None else self.own.read(self.examples.sources[rows.start : rows.stop])[0]

"""`ExtractionBlocks`: an `Extraction` of many prompts, block by block, for what is too large for memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from interp.activations.activation_cache import CachedModel
from interp.activations.extracted_kinds import Extracted
from interp.activations.extraction_pass import BatchSlots, BatchValues, ExtractionPlan
from interp.activations.prompt_batches import PaddingSide, encoded_prompts
from interp.errors import InterpError
from interp.interventions import Intervention
from interp.prompts import Encoded

__all__ = ["BlockValues", "ExtractionBlocks"]


class BlockValues(Mapping[Extracted, Tensor]):
    """What was taken of a block.

    Arguments:
        values: of its prompts.

    Attributes:
        sums, counts: of what is averaged over examples, by name: the sums over this block, and how many these are.
    """

    def __init__(self, values: BatchValues) -> None:
        self._tensors = values.tensors
        self.sums, self.counts = values.sums, values.counts

    def __getitem__(self, one: Extracted) -> Tensor:
        return self._tensors[str(one)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class ExtractionBlocks:
    """An iterable of blocks of prompts; a block is run when it is asked for, and kept nowhere.

    `pipeline.store.write_cache` writes it. Its protocol is that of `CacheBlocks`; besides, `means` is averaged over
    examples, `static` and `attributes` are known before anything runs.

    Attributes:
        plan: what is taken.
        extraction: the same, as data.
        encoded: the prompts, without their images.
        images: of those prompts that have some, by number: the prompts again, which are encoded with their block, and
            the digest of their images.
        slots: their tokens that something is taken at.
        saved: what a batch saver kept of them.
        ranges: which prompts each block has.
    """

    plan: ExtractionPlan
    extraction: Mapping[str, Any]
    encoded: Sequence[Encoded]
    images: Mapping[int, tuple[Any, str]]
    slots: BatchSlots
    saved: Mapping[str, Any]
    ranges: Sequence[range]
    batch_size: int
    interventions: Intervention | Sequence[Intervention]
    padding_side: PaddingSide

    @property
    def sites(self) -> list[Extracted]:
        """What is kept of each example; token ids are `input_ids` and `positions`."""
        return [x for x in self.plan.kept if x.kind != "input_ids"]

    @property
    def means(self) -> list[Extracted]:
        """What is averaged over examples; a block has its sums."""
        return list(self.plan.averaged)

    @property
    def positions(self) -> list[list[int]]:
        """Per prompt, the token at each slot of the axis `position`; -1: none."""
        return self.slots.position.table.tolist()

    @property
    def labels(self) -> list[str]:
        """Names along that axis."""
        return self.slots.position.labels

    @property
    def input_ids(self) -> list[list[int]]:
        """Tokens of each prompt."""
        return [list(one.input_ids) for one in self.encoded]

    @property
    def about(self) -> CachedModel:
        """What is known of the model, its digest included."""
        return replace(CachedModel.of(self.plan.model), digest=self.plan.model.digest())

    @property
    def static(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Rows and columns of maps, and numbers that a batch saver kept, by name: names of the axes, and values."""
        found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
        if self.plan.has_maps:
            for axis in ("query", "key"):
                table = getattr(self.slots, axis).table.numpy().astype(np.int32)
                found[f"{axis}_positions"] = (("example", f"{axis}@positions"), table)
        for name, values in self.saved.items():
            if (array := _numbers(values)) is not None:
                axes = ("example", *(f"axis{index}@saved_{name}" for index in range(1, array.ndim)))
                found[f"saved_{name}"] = (axes, array)
        return found

    @property
    def attributes(self) -> dict[str, Any]:
        """The extraction, names along axes, and what else a batch saver kept."""
        texts = {name: list(values) for name, values in self.saved.items() if _numbers(values) is None}
        named = {
            axis: {"names": slots.names, "widths": list(slots.widths)}
            for axis in (("position", "query", "key") if self.plan.has_maps else ("position",))
            for slots in [getattr(self.slots, axis)]
        }
        edits = [self.interventions] if isinstance(self.interventions, Intervention) else self.interventions
        return {
            "extraction": dict(self.extraction),
            "axes": named,
            "saved": texts,
            "interventions": [one.to_dict() for one in edits],
            **({"images": self._digests()} if self.images else {}),
        }

    def _digests(self) -> list[str | None]:
        """Of each prompt that of its images, so that no store goes on with others."""
        return [self.images[row][1] if row in self.images else None for row in range(len(self.encoded))]

    def axes(self, one: Extracted) -> tuple[str, ...]:
        """Names of the axes of what is taken."""
        return self.plan.axes(one)

    def block(self, index: int) -> BlockValues:
        """Run the prompts of a block."""
        rows = self.ranges[index]
        slots = BatchSlots(**{axis: getattr(self.slots, axis).rows(rows) for axis in ("position", "query", "key")})
        values = self.plan.run(
            [self._encoded(row) for row in rows], slots, interventions=self.interventions,
            batch_size=self.batch_size, padding_side=self.padding_side,
        )  # fmt: skip
        return BlockValues(values)

    def _encoded(self, row: int) -> Encoded:
        """A prompt, with its images."""
        light = self.encoded[row]
        if row not in self.images:
            return light
        prompt, digest = self.images[row]
        [whole] = [prompt] if isinstance(prompt, Encoded) else encoded_prompts(self.plan.model, [prompt])
        if whole.media is None or whole.media.digest() != digest:
            raise InterpError(f"batches: the images of prompt {row} have changed since they were read. Begin anew.")
        return replace(light, media=whole.media)

    def __len__(self) -> int:
        return len(self.ranges)

    def __iter__(self) -> Iterator[BlockValues]:
        return (self.block(index) for index in range(len(self)))


def _numbers(values: Any) -> np.ndarray | None:
    """Values as an array of numbers, where they are that."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):  # rows of several lengths, or what numpy has no numbers for
        return None
    return array if array.dtype.kind in "biuf" and array.dtype != np.float16 else None

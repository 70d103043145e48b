"""Writes the activations of many prompts into a store: `write_cache(path, model.cache_blocks(prompts, sites=...))`.

`extraction.blocks(model, batches)` is written the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from interp.errors import InterpError
from pipeline.store.running_statistics import BlockStatistics
from pipeline.store.schema import BFLOAT16, ArraySpec, Static
from pipeline.store.writer import StoreWriter

__all__ = ["Blocks", "write_cache"]

FORMAT = "interpipe.cache/1"
UNIT = "example"
_LENGTHS = "num_tokens"


class Blocks(Protocol):
    """Caches of consecutive prompts, each made when it is asked for: `interp.activations.CacheBlocks`."""

    @property
    def sites(self) -> Sequence[Any]:
        """What is cached."""

    @property
    def ranges(self) -> Sequence[range]:
        """Which prompts each block has."""

    @property
    def positions(self) -> Sequence[Sequence[int]]:
        """Per prompt, the token at each place along the axis `position`; -1: none."""

    @property
    def labels(self) -> Sequence[str]:
        """Names along that axis."""

    @property
    def input_ids(self) -> Sequence[Sequence[int]]:
        """Tokens of each prompt."""

    @property
    def about(self) -> Any:
        """What is known of the model: its name, sizes and digest."""

    @property
    def means(self) -> Sequence[Any]:
        """What is averaged over examples; a block then has `sums` and `counts` by name."""

    @property
    def static(self) -> Static:
        """More arrays that are known now."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """More plain values that are known now."""

    def axes(self, site: Any) -> Sequence[str]:
        """Names of the axes of a site's tensor, `example` first."""

    def block(self, index: int) -> Any:
        """The tensors of a block, a mapping by site."""


def write_cache(
    path: str | Path,
    blocks: Blocks,
    *,
    chunk_bytes: int = 1 << 20,
    compression: str = "none",
    statistics: bool = False,
) -> dict[str, int]:
    """Write a cache into a store: one array a site, under the site's name, with the cache's axes.

    No more than a block is in memory. What a process that was killed has written stays: call it again to go on.

    Arguments:
        path: the store's folder, as of `StoreWriter`.
        blocks: `model.cache_blocks(prompts, sites=..., positions=...)`, or `extraction.blocks(model, batches)`.
        chunk_bytes, compression: as of `StoreWriter`.
        statistics: keep the mean, the standard deviation and the mean norm of each site too. They, and what an
            extraction averages over examples, lie in a store beside this one (`statistics_path`); `read_statistics`
            reads them.

    Returns:
        `blocks` that there are, and how many of them were `written` now.

    Raises:
        InterpError: the folder is no store, or one of another cache.
    """
    ranges = list(blocks.ranges)
    if not ranges:
        raise InterpError("write_cache: expected at least one block of prompts, got none.")
    first = blocks.block(0)  # widths are seen, not guessed
    arrays, dtypes = _arrays(blocks, 0, first)
    given: dict[str, Any] = {"chunk_bytes": chunk_bytes, "compression": compression}
    writer = StoreWriter(
        path,
        _layout(blocks, arrays, dtypes),
        unit=UNIT,
        block_size=len(ranges[0]),
        attributes={**_described(blocks), **blocks.attributes},
        static={**_static(blocks), **blocks.static},
        **given,
    )
    with writer, BlockStatistics(path, blocks, first if statistics or blocks.means else None, statistics) as running:
        pending = [] if writer.finished else writer.pending()
        for block in sorted({*pending, *running.pending()}):
            values = blocks.block(block) if block else first
            running.write(block, values)
            if block in pending:
                writer.write(block, _arrays(blocks, block, values)[0] if block else arrays)
        running.finish()
        if not writer.finished:
            writer.finish()
    return {"blocks": len(ranges), "written": len(pending)}


def _arrays(blocks: Blocks, index: int, cache: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The values of a block, and their dtypes; numpy has no bfloat16, which is written from float32 exactly.

    Where nothing but means over examples is asked for, each example has its number of tokens.
    """
    if not blocks.sites:
        rows = blocks.ranges[index]
        lengths = [len(ids) for ids in blocks.input_ids[rows.start : rows.stop]]
        return {_LENGTHS: np.array(lengths, dtype=np.int32)}, {_LENGTHS: "int32"}
    found, dtypes = {}, {}
    for site in blocks.sites:
        tensor = cache[site].cpu()
        dtypes[str(site)] = str(tensor.dtype).removeprefix("torch.")
        found[str(site)] = (tensor.float() if dtypes[str(site)] == BFLOAT16 else tensor).numpy()
    return found, dtypes


def _layout(blocks: Blocks, first: Mapping[str, np.ndarray], dtypes: Mapping[str, str]) -> list[ArraySpec]:
    """An array for each site; a dimension that differs in length from one of its name has the site behind it."""
    lengths = {UNIT: len(blocks.positions), "position": len(blocks.labels)}
    arrays = [] if blocks.sites else [ArraySpec(_LENGTHS, (UNIT,), (len(blocks.positions),), dtypes[_LENGTHS])]
    for site in blocks.sites:
        values = first[str(site)]
        shape = (len(blocks.positions), *values.shape[1:])
        dimensions = []
        for axis, length in zip(blocks.axes(site), shape, strict=True):
            same = lengths.setdefault(axis, length) == length
            dimensions.append(axis if same else f"{axis}@{site}")
        arrays.append(ArraySpec(str(site), tuple(dimensions), shape, dtypes[str(site)]))
    return arrays


def _described(blocks: Blocks) -> dict[str, Any]:
    about = blocks.about
    return {
        "format": FORMAT,
        "sites": [str(site) for site in blocks.sites],
        "position_names": list(blocks.labels),
        "model": {"name": about.name, "digest": about.digest, "num_layers": about.num_layers},
    }


def _static(blocks: Blocks) -> Static:
    tokens = [len(ids) for ids in blocks.input_ids]
    return {
        "positions": ((UNIT, "position"), np.asarray(blocks.positions, dtype=np.int32)),
        "input_ids": (("token",), np.concatenate([np.asarray(ids, dtype=np.int32) for ids in blocks.input_ids])),
        "input_offsets": (("offset",), np.concatenate([[0], np.cumsum(tokens)]).astype(np.int64)),
    }

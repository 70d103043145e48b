"""Sums over the examples of a store, block by block: means of an extraction; mean, deviation and norm of each site.

They lie beside the store, one row a block, so that a process that was killed goes on and ends with the same bytes. All
are float64; `read_statistics` adds the blocks up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InterpError
from pipeline.store.reader import open_store
from pipeline.store.schema import ArraySpec
from pipeline.store.writer import StoreWriter

if TYPE_CHECKING:
    from pipeline.store.activation_cache import Blocks

__all__ = ["BlockStatistics", "read_statistics", "statistics_path"]

FORMAT = "interpipe.statistics/1"


def statistics_path(path: str | Path) -> Path:
    """Where the statistics of a store lie: `cache.zarr` has `cache_statistics.zarr`."""
    path = Path(path)
    return path.with_name(f"{path.stem}_statistics{path.suffix}")


class BlockStatistics:
    """Writes the sums of each block; the same however often it was interrupted.

    Arguments:
        path: of the store that they are of.
        blocks: what is written there.
        first: the values of the first block, which say how wide each is; None: nothing is written.
        sites: whether mean, deviation and norm of each site are kept.
    """

    def __init__(self, path: str | Path, blocks: Blocks, first: Any | None, sites: bool) -> None:
        self._blocks, self._sites = blocks, sites
        self._writer: StoreWriter | None = None
        if first is None:
            return
        count = len(blocks.ranges)
        arrays = [
            ArraySpec(
                name,
                ("block", *(f"axis{axis}@{name}" for axis in range(values.ndim))),
                (count, *values.shape),
                "float64",
            )
            for name, values in self._sums(first).items()
        ]
        about = blocks.about
        attributes = {
            "format": FORMAT,
            "means": [str(one) for one in blocks.means],
            "sites": [str(one) for one in blocks.sites] if sites else [],
            "model": {"name": about.name, "digest": about.digest},
            **({"of": dict(blocks.attributes)} if blocks.attributes else {}),
        }
        self._writer = StoreWriter(
            statistics_path(path), arrays, unit="block", block_size=1, attributes=attributes, static={}
        )

    def pending(self) -> list[int]:
        """The blocks that are missing."""
        return [] if self._writer is None or self._writer.finished else self._writer.pending()

    def write(self, block: int, values: Any) -> None:
        """Write the sums of a block, if they are missing."""
        if self._writer is not None and block in self.pending():
            self._writer.write(block, {name: sums[None] for name, sums in self._sums(values).items()})

    def finish(self) -> None:
        """Mark them complete."""
        if self._writer is not None and not self._writer.finished:
            self._writer.finish()

    def _sums(self, values: Any) -> dict[str, np.ndarray]:
        """By array: of a mean (2, ...), sums and how many they are of; of a site (3, width), count, sum and squares.

        The norms of all sites are one array, (site, 2): how many vectors there are, and the sum of their norms.
        """
        found: dict[str, np.ndarray] = {}
        for one in self._blocks.means:
            sums = values.sums[str(one)].double().cpu().numpy()
            counts = values.counts[str(one)].double().cpu().numpy()
            found[f"mean@{one}"] = np.stack([sums, np.broadcast_to(counts, sums.shape)])
        norms = []
        for site in self._blocks.sites if self._sites else ():
            numbers = values[site].double().cpu().numpy()
            rows = numbers.reshape(-1, numbers.shape[-1])
            there = ~np.isnan(rows)  # a map's row has no keys behind its prompt's last
            rows, there = rows[there.any(-1)], there[there.any(-1)]  # without the slots that an example lacks
            kept = np.where(there, rows, 0.0)
            found[f"site@{site}"] = np.stack([there.sum(0), kept.sum(0), (kept**2).sum(0)]).astype(float)
            norms.append([len(rows), np.linalg.norm(kept, axis=1).sum()])
        return found | ({"norms": np.array(norms, float)} if norms else {})

    def __enter__(self) -> BlockStatistics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()


def read_statistics(path: str | Path) -> dict[str, dict[str, Any]]:
    """The statistics of a store that `write_cache` wrote.

    Arguments:
        path: of the store that they are of.

    Returns:
        By name of what was averaged over examples: its `mean`, in the shape of the extraction's, and `count`, over how
        many examples. By site, where `statistics=True`: `mean`, `std` and `count` of each number along its last axis,
        over all examples, positions and heads (NaN left out), and the mean Euclidean `norm` along that axis.

    Raises:
        InterpError: there are none.
    """
    place = statistics_path(path)
    if not place.exists():
        raise InterpError(f"{place}: no statistics. Write the store with write_cache(..., statistics=True).")
    store = open_store(place)
    found: dict[str, dict[str, Any]] = {}
    attributes: Mapping[str, Any] = store.attributes
    with np.errstate(invalid="ignore", divide="ignore"):
        for name in attributes["means"]:
            sums, counts = store.read(f"mean@{name}").sum(0)
            found[name] = {"mean": sums / counts, "count": counts}
        for index, name in enumerate(attributes["sites"]):
            count, total, squares = store.read(f"site@{name}").sum(0)
            vectors, norm = store.read("norms").sum(0)[index]
            mean = total / count
            std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
            found[name] = {"mean": mean, "std": std, "count": count, "norm": float(norm / vectors)}
    return found

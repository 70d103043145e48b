"""Write a store block by block, so that a killed process loses the block in its hands and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import Crc32cCodec, ZstdCodec

from interp.errors import InterpError, nearest
from pipeline.files import (
    flush_all,
    read_json,
    record_of,
    sweep_partial,
    write_json_durably,
)
from pipeline.store.schema import (
    BFLOAT16,
    BLOCK_DIMENSION,
    COMPLETE,
    FORMAT,
    HEADER_FILE,
    LOCK_FILE,
    STORE_FILE,
    ArraySpec,
    Static,
    blocks_of,
    chunk_shape,
    differences,
    fill_value,
    from_bfloat16,
    header_files,
    header_of,
    marker_file,
    plain_json,
    shard_files,
    shard_shape,
    to_bfloat16,
)


class StoreWriter:
    """The one writer of a store; goes on where an earlier one with the same header stopped.

    The finished store has the same bytes whatever the order of the blocks and however often it was interrupted.

    Arguments:
        path: the store's folder. Inside a folder named `*.zarr` it becomes a group of that root.
        arrays: the arrays; each has the unit dimension.
        unit: the dimension that is cut into blocks.
        block_size: units in a block.
        attributes: plain values kept with the store.
        static: small arrays that are known now: name -> (dimension names, values).
        chunk_bytes: size of an inner chunk at most, in bytes.
        compression: `none` or `zstd`.

    Raises:
        InterpError: the layout is wrong; the folder is no store, belongs to another config or has another writer.
    """

    def __init__(
        self,
        path: str | Path,
        arrays: Sequence[ArraySpec],
        *,
        unit: str,
        block_size: int,
        attributes: Mapping[str, Any],
        static: Static,
        chunk_bytes: int = 1 << 20,
        compression: str = "none",
    ) -> None:
        self.path = Path(path)
        self.arrays = list(arrays)
        self.unit = unit
        self.header = header_of(
            self.arrays,
            unit=unit,
            block_size=block_size,
            attributes=attributes,
            static=static,
            chunk_bytes=chunk_bytes,
            compression=compression,
        )
        self.blocks = blocks_of(self.header["length"], block_size)
        self._lock: FileLock | None = None
        if self.finished:
            self._check_header()
            return
        self._take_lock()
        try:
            if (self.path / HEADER_FILE).is_file():
                self._check_header()
                sweep_partial(self.path)
            else:
                self._create(static)
        except BaseException:
            self.close()
            raise

    # -- state

    @property
    def finished(self) -> bool:
        """Whether the store is complete and marked so."""
        return (self.path / STORE_FILE).is_file()

    def pending(self) -> list[int]:
        """The blocks that are not complete yet."""
        return [b for b in range(len(self.blocks)) if not self._is_complete(b)]

    def _is_complete(self, block: int) -> bool:
        """Whether a block's marker is there and its shards have the sizes that the marker says."""
        marker = self.path / marker_file(block)
        if not marker.is_file():
            return False
        try:
            shards = read_json(marker)["shards"]
        except InterpError:  # a damaged marker vouches for nothing
            return False
        return all(
            (self.path / file).is_file() and (self.path / file).stat().st_size == record["size"]
            for file, record in shards.items()
        )

    # -- opening

    def _take_lock(self) -> None:
        lock_path = self.path / LOCK_FILE
        ours = lock_path.exists() or (self.path / HEADER_FILE).exists()
        if self.path.exists() and not ours and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InterpError(
                f"{self.path}: expected a store or nothing there, found something else. "
                "Move it away or choose another path."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(lock_path)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._lock = None
            raise InterpError(
                f"{self.path} is being written by another process. Wait for it; if it hangs, end it and run again."
            ) from None

    def _check_header(self) -> None:
        lines = differences(self.header, read_json(self.path / HEADER_FILE))
        if lines:
            raise InterpError(
                f"{self.path}: store written by another config. "
                + "; ".join(lines[:5])
                + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
                + f". Remove {self.path} or choose another path."
            )

    def _create(self, static: Static) -> None:
        """Write everything but the data. The header's own file comes last: without it a folder is begun again."""
        for entry in self.path.iterdir():
            if entry.name != LOCK_FILE:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        root = self.path.parent
        if root.suffix == ".zarr" and not (root / "zarr.json").exists():
            zarr.open_group(root, mode="a", zarr_format=3)
            flush_all(["zarr.json"], root)
        group = zarr.open_group(self.path, mode="a", zarr_format=3, attributes=self.header["attributes"])
        for spec, entry in zip(self.arrays, self.header["arrays"], strict=True):
            shard = shard_shape(spec, self.unit, self.header["block_size"])
            group.create_array(
                spec.name,
                shape=spec.shape,
                dtype=spec.stored_dtype,
                chunks=chunk_shape(shard, spec.stored_dtype.itemsize, self.header["chunk_bytes"]),
                shards=shard,
                compressors=self._compressors(),
                filters=None,
                fill_value=fill_value(spec.dtype),
                dimension_names=spec.dimensions,
                attributes={**entry["attributes"], **({"dtype": BFLOAT16} if spec.dtype == BFLOAT16 else {})},
                config={"write_empty_chunks": True},
            )
        for name, (dimensions, values) in static.items():
            self._create_whole(group, name, dimensions, np.asarray(values))
        rows = np.array([len(block) for block in self.blocks], dtype=np.int32)
        self._create_whole(group, COMPLETE, (BLOCK_DIMENSION,), rows)
        flush_all((f for f in header_files(self.header) if f != HEADER_FILE), self.path)
        write_json_durably(self.path / HEADER_FILE, self.header)

    def _create_whole(self, group: zarr.Group, name: str, dimensions: tuple[str, ...], values: np.ndarray) -> None:
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=tuple(max(1, n) for n in values.shape),
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=fill_value(values.dtype.name) if values.dtype.kind in "fi" else 0,
            dimension_names=dimensions,
            config={"write_empty_chunks": True},
        )
        if values.size:
            array[...] = values

    def _compressors(self) -> list[Any]:
        return [ZstdCodec(level=3), Crc32cCodec()] if self.header["compression"] == "zstd" else [Crc32cCodec()]

    # -- writing

    def write(self, block: int, values: Mapping[str, np.ndarray]) -> None:
        """Write one block of every array and mark it complete, once its bytes are on the disk.

        Arguments:
            block: index into `blocks`.
            values: for each array, the block's values: the array's shape with the unit dimension cut to the block.
                A bfloat16 array takes its bits as uint16, or floats, which are rounded.

        Raises:
            InterpError: an array is missing or unknown, or has another shape or a dtype that would lose something.
            OSError: the disk refuses. The block is then not complete, and nothing of it is kept.
        """
        if self._lock is None:
            raise InterpError(f"{self.path} is {'finished' if self.finished else 'closed'}: it takes no more blocks.")
        if not 0 <= block < len(self.blocks):
            raise InterpError(f"block {block}: expected 0..{len(self.blocks) - 1}.")
        names = [a.name for a in self.arrays]
        for name in values:
            if name not in names:
                raise InterpError(f"block {block}: unknown array {name!r}.{nearest(name, names)}")
        missing = [name for name in names if name not in values]
        if missing:
            raise InterpError(f"block {block}: expected all arrays, no values for {', '.join(missing)}.")
        rows = self.blocks[block]
        checked = {a.name: self._checked(a, np.asarray(values[a.name]), rows) for a in self.arrays}
        files = shard_files(self.arrays, self.unit, block)
        self._forget(block)
        try:
            group = zarr.open_group(self.path, mode="r+", zarr_format=3)
            # Digests take longer than zarr does, so they are computed while it writes the next array.
            with ThreadPoolExecutor(max_workers=2) as threads:
                records = {}
                for spec in self.arrays:
                    if spec.name not in files:
                        continue
                    array = group[spec.name]
                    assert isinstance(array, zarr.Array)
                    array.with_config({"write_empty_chunks": True})[self._rows(spec, rows)] = checked[spec.name]
                    records[files[spec.name]] = threads.submit(record_of, self.path / files[spec.name])
                shards = {file: record.result() for file, record in records.items()}
            flush_all(files.values(), self.path)
            marker = {"block": block, "start": rows.start, "stop": rows.stop, "shards": shards}
            write_json_durably(self.path / marker_file(block), marker)
        except BaseException:
            self._forget(block)  # gives a full disk its space back
            raise

    def _checked(self, spec: ArraySpec, values: np.ndarray, rows: range) -> np.ndarray:
        shape = tuple(len(rows) if d == self.unit else n for d, n in zip(spec.dimensions, spec.shape, strict=True))
        if values.shape != shape:
            raise InterpError(f"array {spec.name!r}: expected {shape} {spec.dimensions}, got {values.shape}.")
        if spec.dtype == BFLOAT16 and values.dtype.kind == "f":
            return to_bfloat16(values)
        if not np.can_cast(values.dtype, spec.stored_dtype, casting="safe"):
            raise InterpError(f"array {spec.name!r}: expected {spec.dtype}, got {values.dtype}. Convert it first.")
        return values.astype(spec.stored_dtype, copy=False)

    def _rows(self, spec: ArraySpec, rows: range) -> tuple[slice, ...]:
        """The place of a block in an array."""
        return tuple(slice(rows.start, rows.stop) if d == self.unit else slice(None) for d in spec.dimensions)

    def _forget(self, block: int) -> None:
        """Remove a block's marker, then its shards."""
        (self.path / marker_file(block)).unlink(missing_ok=True)
        for file in shard_files(self.arrays, self.unit, block).values():
            (self.path / file).unlink(missing_ok=True)

    def read(self, block: int, name: str) -> np.ndarray:
        """One array's values in a block that is complete (bfloat16 as float32), also before the store is finished.

        Raises:
            InterpError: the block is not complete, or there is no such array.
        """
        specs = {a.name: a for a in self.arrays}
        if name not in specs:
            raise InterpError(f"{self.path} has no array {name!r}.{nearest(name, specs)}")
        if not 0 <= block < len(self.blocks) or not self._is_complete(block):
            raise InterpError(f"{self.path}: block {block} is not complete, so it cannot be read.")
        rows = self.blocks[block]
        spec = specs[name]
        array = zarr.open_group(self.path, mode="r", zarr_format=3)[name]
        assert isinstance(array, zarr.Array)
        values = np.asarray(array[self._rows(spec, rows)])
        return from_bfloat16(values) if spec.dtype == BFLOAT16 else values

    # -- finishing

    def finish(self, attributes: Mapping[str, Any] | None = None) -> None:
        """Mark the store complete. Without this no reader opens it.

        Arguments:
            attributes: plain values that are known only now, added to the store's attributes.

        Raises:
            InterpError: a block is not complete.
        """
        if self.finished:
            return
        if self._lock is None:
            raise InterpError(f"{self.path} is closed: open it again to finish it.")
        pending = self.pending()
        if pending:
            raise InterpError(f"{self.path}: expected all {len(self.blocks)} blocks, not complete: {pending[:10]}.")
        late = plain_json(dict(attributes or {}), "the attributes given to finish()")
        group = zarr.open_group(self.path, mode="r+", zarr_format=3)
        group.attrs.put(plain_json({**self.header["attributes"], **late}, "the store's attributes"))
        sweep_partial(self.path)
        (self.path / LOCK_FILE).unlink(missing_ok=True)
        flush_all(["zarr.json"], self.path)
        files = {file: record_of(self.path / file) for file in header_files(self.header)}
        for block in range(len(self.blocks)):
            files[marker_file(block)] = record_of(self.path / marker_file(block))
            files |= read_json(self.path / marker_file(block))["shards"]
        write_json_durably(self.path / STORE_FILE, {"format": FORMAT, "blocks": len(self.blocks), "files": files})
        self.close()

    def close(self) -> None:
        """Let another writer go on. What is complete stays; a finished store is closed already."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

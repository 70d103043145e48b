"""Read a finished store by the names of its dimensions, and check every byte of it against its markers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from interp.errors import InterpError, nearest
from pipeline.files import files_under, read_json, sha256_of
from pipeline.store.schema import (
    BFLOAT16,
    COMPLETE,
    HEADER_FILE,
    STORE_FILE,
    ArraySpec,
    from_bfloat16,
    how_to_mend,
    marker_file,
    plain_dimension,
    shard_files,
    specs_from,
)

Selection = int | slice | Sequence[int] | np.ndarray


class Store:
    """A finished store, read only. Made by `open_store`.

    Attributes:
        path: its folder.
        attributes: the store's attributes, plain values.
        unit: the dimension that is cut into blocks.
        block_size: units in a block, one shard per array.
        num_blocks: how many blocks there are.
    """

    def __init__(self, path: Path, header: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
        self.path = path
        self.unit: str = header["unit"]
        self.block_size: int = header["block_size"]
        self._specs = {spec.name: spec for spec in specs_from(header)}
        self.num_blocks: int = math.ceil(header["length"] / header["block_size"])
        self._static: dict[str, dict[str, Any]] = header["static"]
        self._files = files
        self._group = zarr.open_group(path, mode="r", zarr_format=3)
        self._opened: dict[str, zarr.Array[Any]] = {}
        self.attributes: dict[str, Any] = dict(self._group.attrs)

    @property
    def arrays(self) -> list[str]:
        """The names of the arrays over the unit dimension."""
        return list(self._specs)

    @property
    def statics(self) -> list[str]:
        """The names of the static arrays."""
        return list(self._static)

    def spec(self, name: str) -> ArraySpec:
        """How an array was declared: dimensions with their qualifiers, shape, dtype, attributes."""
        if name not in self._specs:
            raise InterpError(f"{self.path} has no array {name!r}.{nearest(name, self._specs)}")
        return self._specs[name]

    def dimensions(self, name: str) -> tuple[str, ...]:
        """The names of an array's dimensions, without qualifiers."""
        return tuple(plain_dimension(d) for d in self.spec(name).dimensions)

    def shape(self, name: str) -> tuple[int, ...]:
        """The lengths of an array's dimensions."""
        return self.spec(name).shape

    def dtype(self, name: str) -> str:
        """An array's dtype: a numpy name or `bfloat16`."""
        return self.spec(name).dtype

    def bytes_on_disk(self, name: str) -> int:
        """Bytes of an array's shards."""
        return sum(r["size"] for f, r in self._files.items() if f.startswith(f"{self.spec(name).name}/c/"))

    def read(self, name: str, /, *, raw: bool = False, **selection: Selection) -> np.ndarray:
        """Read an array, or the part of it that is selected by dimension.

        Arguments:
            name: the array.
            raw: give bfloat16 as the uint16 bits that lie on disk, not as float32.
            selection: for a dimension, an index (drops the dimension), a slice, or a list of indices. Negative indices
                count from the end. Lists in several dimensions select a grid (as `numpy.ix_`).

        Returns:
            The values; dimensions in the array's order.

        Raises:
            InterpError: no such array or dimension, an index out of range, or a shard that is broken on disk.
        """
        spec = self.spec(name)
        dimensions = self.dimensions(name)
        chosen: list[Any] = [slice(None)] * len(dimensions)
        for dimension, wanted in selection.items():
            known = (*dimensions, *spec.dimensions)  # without and with qualifiers, in the same order
            if dimension not in known:
                raise InterpError(f"array {name!r} has no dimension {dimension!r}.{nearest(dimension, set(known))}")
            chosen[known.index(dimension) % len(dimensions)] = wanted
        indices = [_indices(d, n, c) for d, n, c in zip(dimensions, spec.shape, chosen, strict=True)]
        lengths = tuple(1 if isinstance(i, int) else len(i) for i in indices)
        kept = tuple(n for n, i in zip(lengths, indices, strict=True) if not isinstance(i, int))
        if math.prod(lengths) == 0:
            values = np.empty(kept, dtype=spec.stored_dtype)
        else:
            values = self._read_checked(spec, indices).reshape(kept)
        return from_bfloat16(values) if spec.dtype == BFLOAT16 and not raw else values

    def static(self, name: str) -> np.ndarray:
        """A static array, whole.

        Raises:
            InterpError: no such array, or its file is broken.
        """
        if name not in self._static:
            raise InterpError(f"{self.path} has no static array {name!r}.{nearest(name, self._static)}")
        files = [file for file in self._files if file.startswith(f"{name}/c")]
        return self._guarded(name, (...,), files)

    def _read_checked(self, spec: ArraySpec, indices: list[int | range | np.ndarray]) -> np.ndarray:
        """Read a grid of indices, none of them empty."""
        units = np.atleast_1d(np.asarray(indices[spec.dimensions.index(self.unit)]))
        blocks = np.unique(units // self.block_size)
        files = [shard_files([spec], self.unit, int(b))[spec.name] for b in blocks]
        selection = tuple(
            slice(i.start, i.stop, i.step) if isinstance(i, range) else slice(i, i + 1) if isinstance(i, int) else i
            for i in indices
        )
        return self._guarded(spec.name, selection, files)

    def _guarded(self, name: str, selection: tuple[Any, ...], files: list[str]) -> np.ndarray:
        """Read through zarr; when a file is missing or broken, say which."""
        for file in files:  # zarr reads a missing file as the fill value, without a word
            fault = size_fault(self.path, file, self._files[file]["size"])
            if fault:
                raise InterpError(f"{fault}. {how_to_mend(self.path)}")
        if name not in self._opened:
            array = self._group[name]
            assert isinstance(array, zarr.Array)
            self._opened[name] = array
        array = self._opened[name]
        try:
            return np.asarray(
                array.oindex[selection] if any(isinstance(s, np.ndarray) for s in selection) else array[selection]
            )
        except Exception as error:  # zarr has no type of its own for a bad checksum; without a broken file it goes on
            broken = [file for file in files if digest_fault(self.path, file, self._files[file]["sha256"])]
            if not broken:
                raise
            raise InterpError(
                f"{self.path}: {', '.join(broken)} is not what was written ({error}). {how_to_mend(self.path)}"
            ) from error


def _indices(dimension: str, length: int, wanted: Selection) -> int | range | np.ndarray:
    """A selection along one dimension as an index, an ascending range, or an array of indices; all from 0 on."""
    if isinstance(wanted, slice):
        taken = range(length)[wanted]
        return taken if taken.step > 0 else np.array(taken, dtype=np.int64)
    if isinstance(wanted, int | np.integer) and not isinstance(wanted, bool):
        index = int(wanted)
        if not -length <= index < length:
            raise InterpError(f"{dimension}={index}: expected an index of {length} (0..{length - 1}, or negative).")
        return index % length
    indices = np.asarray(wanted)
    if indices.size == 0:
        return np.empty(0, dtype=np.int64)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise InterpError(f"{dimension}: expected an index, a slice or a list of indices, got {wanted!r}.")
    bad = indices[(indices < -length) | (indices >= length)]
    if bad.size:
        raise InterpError(f"{dimension}={int(bad[0])}: expected indices of {length} (0..{length - 1}, or negative).")
    return np.asarray(indices, dtype=np.int64) % length


def size_fault(path: Path, file: str, size: int) -> str | None:
    """What is wrong with a file as far as its size tells, or None."""
    target = path / file
    if not target.is_file():
        return f"{path}: {file} is missing"
    found = target.stat().st_size
    return None if found == size else f"{path}: {file} has {found} bytes, expected {size}"


def digest_fault(path: Path, file: str, sha256: str) -> str | None:
    """Whether a file's bytes are other than those that were written, or None."""
    return None if sha256_of(path / file) == sha256 else f"{path}: {file} is not what was written (SHA-256 differs)"


def open_store(path: str | Path, verify: bool = False) -> Store:
    """Open a finished store.

    Arguments:
        path: the store's folder, e.g. `activations.zarr` or `lens.zarr/patchscope`.
        verify: read every file and compare its SHA-256; without it only sizes are compared.

    Raises:
        InterpError: there is no store, it is unfinished, or a file is missing, truncated or (with `verify`) changed.
    """
    folder = Path(path)
    if not (folder / HEADER_FILE).is_file():
        inside = (
            f" It holds stores: {', '.join(list_stores(folder))}." if folder.is_dir() and list_stores(folder) else ""
        )
        raise InterpError(f"expected a store at {folder}, found none.{inside or ' Run the stage that writes it.'}")
    header = read_json(folder / HEADER_FILE)
    if not (folder / STORE_FILE).is_file():
        total = math.ceil(header["length"] / header["block_size"])
        done = sum((folder / marker_file(block)).is_file() for block in range(total))
        raise InterpError(
            f"{folder} is unfinished: {done} of {total} blocks are complete. "
            "Run the same command again: it goes on from there."
        )
    files = read_json(folder / STORE_FILE)["files"]
    if verify:
        faults = verify_store(folder)
    else:
        faults = [
            fault
            for file, record in files.items()
            if (fault := size_fault(folder, file, record["size"]))
            or (file.endswith("zarr.json") and (fault := digest_fault(folder, file, record["sha256"])))
        ]
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InterpError(f"{'; '.join(faults[:5])}{more}. {how_to_mend(folder)}")
    return Store(folder, header, files)


def list_stores(path: str | Path) -> list[str]:
    """The names of the stores inside a root group such as `lens.zarr`, sorted; unfinished ones too.

    Raises:
        InterpError: there is no such folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InterpError(f"expected a folder with stores at {folder}, found none. Run the stage that writes it.")
    return sorted(f.name for f in folder.iterdir() if f.name != COMPLETE and (f / HEADER_FILE).is_file())


def stores_at(path: str | Path) -> list[Path]:
    """The store at a path, or the stores in the root group at it.

    Raises:
        InterpError: there is neither.
    """
    folder = Path(path)
    if (folder / HEADER_FILE).is_file():
        return [folder]
    found = [folder / name for name in list_stores(folder)]
    if not found:
        raise InterpError(f"expected a store, or a group of stores, at {folder}; found neither.")
    return found


def verify_root(path: str | Path) -> list[str]:
    """What is wrong with the root of a group of stores itself; a line for each fault."""
    try:
        if read_json(Path(path) / "zarr.json").get("node_type") == "group":
            return []
    except FileNotFoundError:
        return [f"{path}: zarr.json is missing"]
    except InterpError as error:
        return [str(error)]
    return [f"{path}: zarr.json is not that of a group"]


def verify_store(path: str | Path) -> list[str]:
    """Compare every file of a store with the size and the SHA-256 that were recorded when it was written.

    Arguments:
        path: a store (for a root group, call it for each of `stores_at`).

    Returns:
        A line for each fault: missing, truncated, changed or extra file; empty when all is well.
    """
    folder = Path(path)
    if not (folder / STORE_FILE).is_file():
        return [f"{folder}: unfinished (no {STORE_FILE})"]
    try:
        files = read_json(folder / STORE_FILE)["files"]
    except InterpError as error:
        return [str(error)]
    faults = []
    for file, record in files.items():
        fault = size_fault(folder, file, record["size"]) or digest_fault(folder, file, record["sha256"])
        if fault:
            faults.append(fault)
    extra = set(files_under(folder)) - set(files) - {STORE_FILE}
    return faults + [f"{folder}: {file} does not belong to the store" for file in sorted(extra)]

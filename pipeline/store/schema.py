"""Define a store's layout on disk: dtypes, shards, inner chunks, names of files, the header that identifies it.

A store is a zarr v3 group. Each of its arrays has a dimension, the *unit* (`prompt`, `example`), that is cut into
blocks; one block is one shard file per array and holds every other dimension whole, so that a block has one writer and
can be written again without touching another. Inside a shard lie chunks of `chunk_bytes` at most, each with a CRC-32C.

    activations.zarr/
      zarr.json                    the group and the store's attributes
      resid_post/zarr.json         one array, with named dimensions
      resid_post/c/0/3/0/0         its shard of block 3
      positions/...                a static array: small, written whole with the header
      complete/zarr.json           an array over blocks, which makes this folder a member that zarr and xarray know
      complete/header.json         what was asked for; a writer with another header is refused
      complete/00003.json          block 3 is complete: size and SHA-256 of each of its shards
      complete/store.json          the store is complete: size and SHA-256 of every file
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import InterpError, nearest

FORMAT = "interpipe.store/1"
COMPLETE = "complete"
HEADER_FILE = f"{COMPLETE}/header.json"
STORE_FILE = f"{COMPLETE}/store.json"
LOCK_FILE = ".writing.lock"
BLOCK_DIMENSION = "block"
COMPRESSIONS = ("none", "zstd")
BFLOAT16 = "bfloat16"
DTYPES = ("float16", "float32", "float64", BFLOAT16, "int8", "int16", "int32", "int64")
STATIC_DTYPES = (*(d for d in DTYPES if d != BFLOAT16), "bool", "uint8", "uint16", "uint32", "uint64")
BFLOAT16_NAN = 0x7FC0

Static = Mapping[str, tuple[tuple[str, ...], np.ndarray]]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store.

    Arguments:
        name: its name, e.g. the site kind `resid_post`.
        dimensions: a name for each dimension. The same name means the same length in all arrays of a store; where
            arrays differ, a qualifier after `@` tells them apart (`layer@attn_out`), which a reader may leave out.
        shape: the length of each dimension, over the whole store.
        dtype: a numpy name, or `bfloat16`, which lies on disk as uint16.
        attributes: plain values kept with the array.
    """

    name: str
    dimensions: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The numpy dtype on disk."""
        return np.dtype("uint16" if self.dtype == BFLOAT16 else self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array, uncompressed."""
        return math.prod(self.shape) * self.stored_dtype.itemsize


def plain_dimension(dimension: str) -> str:
    """A dimension's name without its qualifier: `layer` for `layer@attn_out`."""
    return dimension.split("@", 1)[0]


def fill_value(dtype: str) -> float | int:
    """What a chunk that was never written reads as: NaN for floats, -1 for integers."""
    if dtype == BFLOAT16:
        return BFLOAT16_NAN
    return float("nan") if np.issubdtype(np.dtype(dtype), np.floating) else -1


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float values to the nearest bfloat16, ties to even.

    Arguments:
        values: floats of any shape.

    Returns:
        The bits as uint16, same shape.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(BFLOAT16_NAN), rounded)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bits (uint16), exactly."""
    return (np.asarray(bits, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)


def blocks_of(length: int, block_size: int) -> list[range]:
    """The unit dimension cut into blocks; the last may be short."""
    return [range(start, min(start + block_size, length)) for start in range(0, length, block_size)]


def shard_shape(spec: ArraySpec, unit: str, block_size: int) -> tuple[int, ...]:
    """The shape of one shard: one block of the unit dimension, every other dimension whole (zarr: at least 1)."""
    return tuple(
        max(1, min(block_size, n) if d == unit else n) for d, n in zip(spec.dimensions, spec.shape, strict=True)
    )


def chunk_shape(shard: tuple[int, ...], itemsize: int, chunk_bytes: int) -> tuple[int, ...]:
    """The largest inner chunk, contiguous in the shard, that divides it and has `chunk_bytes` at most.

    Leading dimensions are cut first, so that a chunk of activations is a run of prompts at one layer.

    Arguments:
        shard: shape of the shard.
        itemsize: bytes of an element.
        chunk_bytes: bytes of a chunk at most; an element is the least.
    """
    chunk = list(shard)
    for axis, length in enumerate(shard):
        rest = math.prod(shard[axis + 1 :]) * itemsize
        fitting = [n for n in range(length, 0, -1) if length % n == 0 and n * rest <= chunk_bytes]
        chunk[axis] = fitting[0] if fitting else 1
        if fitting:
            break
    return tuple(chunk)


def shard_files(arrays: Sequence[ArraySpec], unit: str, block: int) -> dict[str, str]:
    """Where the shards of a block lie: name of the array -> path in the store. An array without elements has none."""
    return {
        a.name: "/".join([a.name, "c", *(str(block if d == unit else 0) for d in a.dimensions)])
        for a in arrays
        if a.nbytes
    }


def marker_file(block: int) -> str:
    """Where the completion marker of a block lies in the store."""
    return f"{COMPLETE}/{block:05d}.json"


def header_files(header: Mapping[str, Any]) -> list[str]:
    """The files that are written before any data: metadata of the group and its arrays, static values, the header."""
    files = ["zarr.json", HEADER_FILE, *(f"{a['name']}/zarr.json" for a in header["arrays"])]
    blocks = -(-header["length"] // header["block_size"])
    whole = {name: entry["shape"] for name, entry in header["static"].items()} | {COMPLETE: [blocks]}
    for name, shape in whole.items():
        files.append(f"{name}/zarr.json")
        if math.prod(shape):
            files.append("/".join([name, "c", *("0" for _ in shape)]))
    return files


def check_layout(arrays: Sequence[ArraySpec], unit: str, block_size: int, static: Static) -> int:
    """Raise unless the arrays make one store.

    Returns:
        The length of the unit dimension.

    Raises:
        InterpError: a name used twice or reserved, an unknown dtype, a dimension of two lengths, an array without the
            unit dimension, a bad block size.
    """
    if not arrays:
        raise InterpError("a store needs at least one array over its unit dimension, got none.")
    if block_size < 1:
        raise InterpError(f"block_size: expected a positive integer, got {block_size}.")
    lengths: dict[str, int] = {}
    owner: dict[str, str] = {}
    shapes = [(a.name, a.dimensions, a.shape) for a in arrays]
    shapes += [(name, dimensions, values.shape) for name, (dimensions, values) in static.items()]
    seen = {COMPLETE}
    for name, dimensions, shape in shapes:
        if name in seen or not name or "/" in name or name.startswith((".", "__")) or name == "zarr.json":
            raise InterpError(f"array name {name!r}: expected a name that is free in this store and holds no '/'.")
        seen.add(name)
        if len(dimensions) != len(shape) or len(set(dimensions)) != len(dimensions):
            raise InterpError(f"array {name!r}: expected one name per dimension of {shape}, got {dimensions}.")
        for dimension, length in zip(dimensions, shape, strict=True):
            if lengths.setdefault(dimension, length) != length:
                raise InterpError(
                    f"dimension {dimension!r} has length {lengths[dimension]} in {owner[dimension]!r} and {length} in "
                    f"{name!r}. Give one of them a qualifier, e.g. '{dimension}@{name}'."
                )
            owner.setdefault(dimension, name)
    for spec in arrays:
        if spec.dtype not in DTYPES:
            raise InterpError(f"array {spec.name!r}: unknown dtype {spec.dtype!r}.{nearest(spec.dtype, DTYPES)}")
        if unit not in spec.dimensions:
            raise InterpError(
                f"array {spec.name!r}: expected the unit dimension {unit!r} among {spec.dimensions}. "
                "An array without it is small: pass it in `static`."
            )
    for name, (_, values) in static.items():
        if values.dtype.name not in STATIC_DTYPES:
            raise InterpError(f"static array {name!r}: unknown dtype {values.dtype.name!r}. Known: {STATIC_DTYPES}.")
    return lengths[unit]


def header_of(
    arrays: Sequence[ArraySpec],
    *,
    unit: str,
    block_size: int,
    attributes: Mapping[str, Any],
    static: Static,
    chunk_bytes: int,
    compression: str,
) -> dict[str, Any]:
    """All that determines a store before its data: two writers may share a store when their headers are equal.

    Raises:
        InterpError: the layout is wrong (`check_layout`), or an attribute cannot be written as JSON.
    """
    length = check_layout(arrays, unit, block_size, static)
    if compression not in COMPRESSIONS:
        raise InterpError(f"compression: unknown {compression!r}.{nearest(compression, COMPRESSIONS)}")
    if chunk_bytes < 8:
        raise InterpError(f"chunk_bytes: expected at least 8 (one element), got {chunk_bytes}.")
    header = {
        "format": FORMAT,
        "unit": unit,
        "length": length,
        "block_size": block_size,
        "chunk_bytes": chunk_bytes,
        "compression": compression,
        "arrays": [
            {
                "name": a.name,
                "dimensions": a.dimensions,
                "shape": a.shape,
                "dtype": a.dtype,
                "attributes": a.attributes,
            }
            for a in arrays
        ],
        "static": {
            name: {
                "dimensions": dimensions,
                "shape": values.shape,
                "dtype": values.dtype.name,
                "sha256": hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest(),
            }
            for name, (dimensions, values) in static.items()
        },
        "attributes": dict(attributes),
    }
    return plain_json(header, "the store's header")


def plain_json(value: Any, what: str) -> Any:
    """A value as JSON gives it back, with sorted keys.

    Raises:
        InterpError: JSON cannot write it (a tensor, NaN, a path).
    """
    try:
        return json.loads(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InterpError(
            f"{what}: expected plain values (text, finite numbers, lists, dicts), got: {error}."
        ) from None


def specs_from(header: Mapping[str, Any]) -> list[ArraySpec]:
    """The arrays of a store's header."""
    return [
        ArraySpec(a["name"], tuple(a["dimensions"]), tuple(a["shape"]), a["dtype"], a["attributes"])
        for a in header["arrays"]
    ]


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """The leaves at which two plain values differ, as readable lines `path: expected X, found Y`."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines: list[str] = []
        for key in sorted(expected.keys() | found.keys()):
            inner = f"{where}.{key}" if where else key
            if key not in expected or key not in found:
                side = "only in this config" if key in expected else "only in the store"
                lines.append(f"{inner}: {side}")
            else:
                lines += differences(expected[key], found[key], inner)
        return lines
    if expected == found:
        return []
    return [f"{where}: expected {_short(expected)}, found {_short(found)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def how_to_mend(path: Path) -> str:
    """The sentence that ends every message about a broken store."""
    return f"To mend it, remove {path} and run the run again: all other stages come from the cache."

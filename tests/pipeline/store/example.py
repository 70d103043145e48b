"""A small store with every kind of array, and a command that writes it and can be killed at a chosen moment.

    python -m tests.pipeline.store.example FOLDER [OPERATION]

With OPERATION, the process kills itself (SIGKILL) at its OPERATION-th operation on the disk.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr.storage._local as local_store

from pipeline import files
from pipeline.store import ArraySpec, StoreWriter
from pipeline.store.schema import to_bfloat16

LAYERS, PROMPTS, POSITIONS, HIDDEN, BLOCK = 3, 10, 2, 8, 4


def values() -> dict[str, np.ndarray]:
    """The arrays, whole."""
    random = np.random.default_rng(0)
    return {
        "resid_post": random.normal(size=(LAYERS, PROMPTS, POSITIONS, HIDDEN)).astype(np.float32),
        "attn_out": to_bfloat16(random.normal(size=(2, PROMPTS, POSITIONS, HIDDEN)).astype(np.float32)),
        "rank": random.integers(0, 9, size=(PROMPTS, LAYERS), dtype=np.int32),
        "nothing": np.zeros((PROMPTS, 0), dtype=np.float32),
    }


def specs() -> list[ArraySpec]:
    """How they are declared."""
    site = ("layer", "prompt", "position", "hidden")
    return [
        ArraySpec("resid_post", site, (LAYERS, PROMPTS, POSITIONS, HIDDEN), "float32", {"unit": "none"}),
        ArraySpec("attn_out", ("layer@attn_out", *site[1:]), (2, PROMPTS, POSITIONS, HIDDEN), "bfloat16"),
        ArraySpec("rank", ("prompt", "layer"), (PROMPTS, LAYERS), "int32"),
        ArraySpec("nothing", ("prompt", "group"), (PROMPTS, 0), "float32"),
    ]


def block_of(array: np.ndarray, spec: ArraySpec, rows: range) -> np.ndarray:
    """One block's part of an array."""
    return np.take(array, np.arange(rows.start, rows.stop), axis=spec.dimensions.index("prompt"))


def writer(path: Path, **changes: Any) -> StoreWriter:
    """A writer of the example store; `changes` replaces arguments of `StoreWriter`."""
    arguments: dict[str, Any] = {
        "arrays": specs(),
        "unit": "prompt",
        "block_size": BLOCK,
        "attributes": {"format": "example/1", "model": {"name": "tiny"}},
        "static": {
            "layer": (("layer",), np.arange(LAYERS, dtype=np.int32)),
            "positions": (("prompt", "position"), np.arange(PROMPTS * POSITIONS, dtype=np.int32).reshape(PROMPTS, -1)),
            "scale": ((), np.array(0.5)),
        },
        "chunk_bytes": 128,
        **changes,
    }
    return StoreWriter(path, **arguments)


def write_pending(store: StoreWriter, order: Sequence[int] | None = None) -> None:
    """Write the blocks that are not complete, in an order."""
    whole = values()
    for block in store.pending() if order is None else order:
        store.write(block, {spec.name: block_of(whole[spec.name], spec, store.blocks[block]) for spec in store.arrays})


def write_store(path: Path, **changes: Any) -> Path:
    """Write the whole store, undisturbed."""
    with writer(path, **changes) as store:
        write_pending(store)
        store.finish({"late": ["a", "b"]})
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def on_operation(number: int, act: Callable[[], None], replace: Callable[[object, str, object], None]) -> None:
    """Do something at an operation on the disk: a file that zarr writes (when half of it is written) or a flush.

    Arguments:
        number: which operation, from 0.
        act: what happens.
        replace: `setattr`, or a monkeypatch's.
    """
    count = itertools.count()
    put, fsync = local_store._put, os.fsync

    def half_put(path: Path, value: Any, exclusive: bool = False) -> int:
        if next(count) == number:
            path.parent.mkdir(parents=True, exist_ok=True)
            with local_store._atomic_write(path, "wb") as stream:
                data = bytes(value.as_buffer_like())
                stream.write(data[: len(data) // 2])
                stream.flush()
                act()
        return put(path, value, exclusive=exclusive)

    def counted_fsync(descriptor: int) -> None:
        if next(count) == number:
            act()
        fsync(descriptor)

    replace(local_store, "_put", half_put)
    replace(files.os, "fsync", counted_fsync)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        on_operation(int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL), setattr)
    write_store(Path(sys.argv[1]))

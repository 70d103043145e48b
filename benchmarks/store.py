"""Throughput of the store beside a raw `numpy.save` of the same data: `python -m benchmarks.store [--json]`.

Both sides are on the disk when a write ends (fsync). The store also computes SHA-256 and CRC-32C of all that it writes,
and checks CRC-32C on what it reads. Reads come from the page cache on both sides. The best of a few alternating
repetitions counts, because other work on the machine only ever adds time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store import ArraySpec, StoreWriter, open_store

LAYERS, PROMPTS, HIDDEN, BLOCK = 24, 2048, 2048, 256
REPETITIONS = 3


def numpy_write(path: Path, data: np.ndarray) -> None:
    """Save an array in one file and wait for the disk."""
    with path.open("wb") as stream:
        np.save(stream, data)
        stream.flush()
        os.fsync(stream.fileno())


def store_write(path: Path, data: np.ndarray) -> None:
    """Write the same array as a store, block by block."""
    spec = ArraySpec("resid_post", ("layer", "prompt", "position", "hidden"), data.shape, data.dtype.name)
    with StoreWriter(path, [spec], unit="prompt", block_size=BLOCK, attributes={}, static={}) as writer:
        for number, block in enumerate(writer.blocks):
            writer.write(number, {"resid_post": data[:, block.start : block.stop]})
        writer.finish()


def seconds_of(action: Callable[[], Any]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(folder: str | Path | None = None) -> dict[str, Any]:
    """Write and read the same data through the store and through `numpy.save`.

    Arguments:
        folder: where the files go, for a while; None: the system's folder for temporary files.

    Returns:
        `megabytes`; in MB/s, `write` and `read` of everything, and `read_layer` of one layer (of numpy: a copy of the
        memory-mapped slice); in milliseconds, `prompt_ms` of one prompt at all layers; each with `store` and `numpy`.
    """
    data = np.random.default_rng(0).standard_normal((LAYERS, PROMPTS, 1, HIDDEN), dtype=np.float32).astype(np.float16)
    best: dict[str, dict[str, float]] = {}

    def time_it(what: str, side: str, action: Callable[[], Any]) -> None:
        sides = best.setdefault(what, {})
        sides[side] = min(sides.get(side, float("inf")), seconds_of(action))

    with tempfile.TemporaryDirectory(dir=folder) as name:
        raw, path = Path(name) / "raw.npy", Path(name) / "store.zarr"
        for _ in range(REPETITIONS):
            raw.unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
            time_it("write", "numpy", lambda: numpy_write(raw, data))
            time_it("write", "store", lambda: store_write(path, data))
            store = open_store(path)
            time_it("read", "numpy", lambda: np.load(raw))
            time_it("read", "store", partial(store.read, "resid_post"))
            time_it("read_layer", "numpy", lambda: np.load(raw, mmap_mode="r")[LAYERS // 2].copy())
            time_it("read_layer", "store", partial(store.read, "resid_post", layer=LAYERS // 2))
            time_it("prompt", "numpy", lambda: np.load(raw, mmap_mode="r")[:, PROMPTS // 2].copy())
            time_it("prompt", "store", partial(store.read, "resid_post", prompt=PROMPTS // 2))
        np.testing.assert_array_equal(open_store(path).read("resid_post"), data)

    megabytes = data.nbytes / 1e6
    sizes = {"write": megabytes, "read": megabytes, "read_layer": megabytes / LAYERS}
    rates = {what: {side: size / best[what][side] for side in best[what]} for what, size in sizes.items()}
    return {"megabytes": megabytes, **rates, "prompt_ms": {side: 1000 * s for side, s in best["prompt"].items()}}


def table(found: dict[str, Any]) -> str:
    """The figures for a reader at a terminal."""
    lines = [
        f"{found['megabytes']:.0f} MB of float16, best of {REPETITIONS}",
        f"{'':<24}{'store':>10}{'numpy.save':>12}",
    ]
    labels = {
        "write": "write, MB/s",
        "read": "read all, MB/s",
        "read_layer": "read one layer, MB/s",
        "prompt_ms": "read one prompt, ms",
    }
    for key, label in labels.items():
        lines.append(f"{label:<24}{found[key]['store']:>10.4g}{found[key]['numpy']:>12.4g}")
    return "\n".join(lines)


def main() -> None:
    """Print the figures, as a table or as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--folder", help="a folder on the disk to measure")
    options = parser.parse_args()
    found = measure(options.folder)
    print(json.dumps(found, indent=2) if options.json else table(found))


if __name__ == "__main__":
    main()

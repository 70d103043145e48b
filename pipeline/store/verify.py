"""Checking every byte of a store against its markers."""

from __future__ import annotations

from pathlib import Path

from interp.errors import InterpError
from pipeline.store.files import files_under, read_json
from pipeline.store.reader import digest_fault, list_stores, size_fault
from pipeline.store.schema import HEADER_FILE, STORE_FILE


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

"""Files that survive a crash: digests, flushing to the disk, and writing by rename."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from interp.errors import InterpError

PARTIAL_SUFFIX = ".partial"  # what zarr's LocalStore calls a file that it has not yet renamed into place


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record_of(path: Path) -> dict[str, Any]:
    """What a marker keeps of a file: its size in bytes and its SHA-256."""
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def flush(path: Path) -> None:
    """Return when a file's bytes, or a folder's entries, are on the disk and not only in the kernel's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(files: Iterable[str], top: Path) -> None:
    """Flush files below a folder, and every folder between each and `top` (included), whose entries name them."""
    folders = {top}
    for file in files:
        flush(top / file)
        folders |= {top / parent for parent in Path(file).parents}
    for folder in sorted(folders):
        flush(folder)


def write_json_durably(path: Path, value: Any) -> None:
    """Write JSON with sorted keys by one rename: after a crash the file is whole or not there."""
    staged = path.with_name(f"{path.name}{PARTIAL_SUFFIX}")
    with staged.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    staged.replace(path)
    flush(path.parent)


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        InterpError: it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise InterpError(f"{path}: expected JSON, found something else ({error}).") from None


def files_under(folder: Path) -> Iterator[str]:
    """Every file below a folder as a relative posix path, sorted."""
    yield from sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def sweep_partial(folder: Path) -> None:
    """Remove what a killed writer had not yet renamed into place."""
    for path in folder.rglob(f"*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)

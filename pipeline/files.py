"""Write files that survive a crash: digests, flushing to the disk, renaming into place."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
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


def digest_of(*parts: Any) -> str:
    """SHA-256, in hexadecimal, of plain values written as JSON with sorted keys.

    Arguments:
        parts: anything that JSON can write; dataclasses through `dataclasses.asdict` first.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256, in hexadecimal, of a file's bytes, or of a folder's relative names and bytes in sorted order."""
    path = Path(path)
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode("utf-8") + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def publish(finished: Path, destination: str | Path) -> None:
    """Move a finished file or folder to its place, by one rename, so that nothing half-written is ever seen there.

    Arguments:
        finished: the finished file or folder, in a scratch folder.
        destination: its place; what is there is replaced.
    """
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    staged = destination.with_name(f".{destination.name}.incoming")
    replaced = destination.with_name(f".{destination.name}.outgoing")
    for left in (staged, replaced):  # of a process that was killed
        _remove(left)
    shutil.move(finished, staged)  # may cross file systems; the renames below never do
    if staged.is_dir() or destination.is_dir():
        # No rename replaces a folder, and one that is removed where it stands would stand there in half.
        with contextlib.suppress(FileNotFoundError):
            os.replace(destination, replaced)
    os.replace(staged, destination)
    _remove(replaced)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file by one rename: whoever is killed meanwhile leaves the old one, whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.incoming")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, path)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with sorted keys and a final newline, by one rename."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")

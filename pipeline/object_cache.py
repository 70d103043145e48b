"""Read and write DVC's cache, checked: an object is named by its MD5, a result by the SHA-256 of its description.

    CACHE/files/md5/ab/cdef...       an object: the bytes of a file
    CACHE/files/md5/ab/cdef....dir   an object: JSON, the path and the MD5 of each file of a folder
    CACHE/runs/ab/KEY/VALUE          a result: what a stage depended on, in YAML, and the objects that it made
    CACHE/verified/ab/cdef...        ours, empty: when an artifact was last found to be what its name says

A file of a finished zarr store is compared with the SHA-256 that the store's own marker holds, which takes less than
half of the time of MD5 on a processor that has instructions for it; the marker itself is compared by MD5.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = ["Cache", "Fault", "remove_result", "result_key", "result_value", "shared_cache"]

FOLDER_SUFFIX = ".dir"
STORE_FILE = "complete/store.json"  # see `pipeline.store.schema`, which loads zarr
READERS = min(8, os.cpu_count() or 1)  # hashing leaves Python's lock alone
NOT_HASHED = ("size", "nfiles")  # what DVC leaves out of a result's name


@dataclass(frozen=True)
class Fault:
    """A file that is not what its name says.

    Arguments:
        path: the file.
        why: one line.
    """

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


@dataclass(frozen=True)
class _Expected:
    """A file to read, and what it is to be."""

    path: Path
    algorithm: str
    digest: str

    def fault(self) -> Fault | None:
        """Read the file; None: it is what it is to be, or it is not there, which DVC notices itself."""
        try:
            with self.path.open("rb") as stream:
                found = hashlib.file_digest(stream, self.algorithm).hexdigest()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:  # a bad sector
                raise
            return Fault(self.path, f"cannot be read ({error.strerror})")
        name = self.algorithm.upper()
        return None if found == self.digest else Fault(self.path, f"its bytes are others than its {name} says")


class Cache:
    """A cache folder of DVC 3.

    Arguments:
        folder: DVC's `cache.dir`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.objects = self.folder / "files" / "md5"
        self.results = self.folder / "runs"

    def object_path(self, name: str) -> Path:
        """Where an object is, or would be."""
        return self.objects / name[:2] / name[2:]

    def files(self, name: str) -> dict[str, str]:
        """The objects of an artifact by relative path; that of a file stands under `""`.

        Arguments:
            name: of the artifact, as `dvc.lock` has it.

        Returns:
            Empty for a folder whose own object is missing or is no such JSON.
        """
        if not name.endswith(FOLDER_SUFFIX):
            return {"": name}
        try:
            listed = json.loads(self.object_path(name).read_bytes())
            return {str(entry["relpath"]): str(entry["md5"]) for entry in listed}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def faults(self, name: str, place: Path | None = None, files: dict[str, str] | None = None) -> list[Fault]:
        """What is broken of an artifact; a missing object is no fault, for DVC notices it.

        Arguments:
            name: of the artifact, as `dvc.lock` has it.
            place: where the artifact was taken to; a file there that is not the cache's own (by a link) is read too.
            files: its objects by relative path; None: as `files` has them.
        """
        if name.endswith(FOLDER_SUFFIX):
            fault = _Expected(self.object_path(name), "md5", name.removesuffix(FOLDER_SUFFIX)).fault()
            if fault is not None:
                return [fault]  # what it lists is not to be believed
        files = self.files(name) if files is None else files
        digests = self._digests_of_stores(files)
        expected = []
        for relative, md5 in files.items():
            algorithm, digest = ("sha256", digests[relative]) if relative in digests else ("md5", md5)
            kept = self.object_path(md5)
            expected.append(_Expected(kept, algorithm, digest))
            taken = None if place is None else place / relative if relative else place
            if taken is not None and taken.is_file() and not (kept.is_file() and taken.samefile(kept)):
                expected.append(_Expected(taken, algorithm, digest))
        with ThreadPoolExecutor(READERS) as readers:
            return [fault for fault in readers.map(_Expected.fault, expected) if fault is not None]

    def _digests_of_stores(self, files: dict[str, str]) -> dict[str, str]:
        """The SHA-256 of each file of each finished store in a folder, from the stores' markers.

        Arguments:
            files: relative path -> object.
        """
        digests: dict[str, str] = {}
        for marker, md5 in files.items():
            if marker != STORE_FILE and not marker.endswith(f"/{STORE_FILE}"):
                continue
            path = self.object_path(md5)
            if _Expected(path, "md5", md5).fault() is not None:
                continue  # reported as a file of its own; the others are compared by their names
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                store = marker.removesuffix(STORE_FILE)
                recorded = json.loads(path.read_bytes())["files"]
                digests |= {store + file: str(record["sha256"]) for file, record in recorded.items()}
        return {file: digest for file, digest in digests.items() if file in files}

    def _stamp(self, name: str) -> Path:
        return self.folder / "verified" / name[:2] / name[2:]

    def trust(self, name: str) -> None:
        """Note that an artifact has just been found to be what its name says."""
        stamp = self._stamp(name)
        with contextlib.suppress(OSError):  # a cache that one may only read from, a full disk
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()

    def discard(self, faults: Iterable[Fault], artifact: str | None = None) -> None:
        """Throw away what is broken, the results that lead to it, and what may have been computed from it.

        A result that depends on a broken artifact, and is no older than the last time that the artifact was found
        whole, may hold numbers of the broken bytes under the name of the right ones: its objects go too, but for those
        that a result without such a doubt makes, so that whoever has it computes it again. What depends on that result
        in turn is right for the content that it names.

        Arguments:
            faults: what `faults` or `broken_objects` found.
            artifact: the artifact that they are of, where a fault may lie outside the cache.
        """
        paths = {fault.path for fault in faults}
        lost = self._holders({path.parent.name + path.name for path in paths if path.is_relative_to(self.objects)})
        doubtful = {name: self._verified(name) for name in (lost if artifact is None else lost | {artifact})}
        for path in paths:
            _remove(path)
        gone, made = set(), set()
        for path, result in self.read_results(doubtful):
            uses = any(name in doubtful and _modified(path) >= doubtful[name] for name in _names(result, "deps"))
            if lost & set(_names(result, "outs")) or uses:
                gone.add(path)
                made |= set(_names(result, "outs")) if uses else set()
        for path, result in self.read_results(made):  # what a result without a doubt makes is right
            made -= set(_names(result, "outs")) if path not in gone else set()
        for name in made:
            _remove(self.object_path(name))
        for path in gone:
            remove_result(path)
        for name in lost | made:
            self._stamp(name).unlink(missing_ok=True)

    def _holders(self, objects: set[str]) -> set[str]:
        """The artifacts that some objects are of: themselves, and every folder that lists one of them."""
        found = set(objects)
        for path in self.objects.glob(f"??/*{FOLDER_SUFFIX}") if objects else ():
            with contextlib.suppress(OSError, UnicodeDecodeError):
                text = path.read_text(encoding="utf-8")
                if any(name in text for name in objects):
                    found.add(path.parent.name + path.name)
        return found

    def _verified(self, name: str) -> float:
        """When an artifact was last found whole; 0: never."""
        return _modified(self._stamp(name))

    def result_paths(self) -> Iterator[Path]:
        """The files of all results."""
        yield from sorted(path for path in self.results.glob("*/*/*") if path.is_file())

    def read_results(self, mentioning: Collection[str] = ("",)) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The results that can be read, with their files.

        Arguments:
            mentioning: only results in whose file one of these texts stands.
        """
        for path in self.result_paths():
            with contextlib.suppress(FileNotFoundError):
                result = read_result(path, mentioning)
                if result is not None:
                    yield path, result

    def broken_objects(self) -> Iterator[Fault]:
        """Read every object and compare it with its name; a folder must also have all its files, and be JSON."""
        paths = sorted(path for path in self.objects.glob("??/*") if path.is_file() and not path.name.endswith(".tmp"))
        expected = [
            _Expected(path, "md5", (path.parent.name + path.name).removesuffix(FOLDER_SUFFIX)) for path in paths
        ]
        with ThreadPoolExecutor(READERS) as readers:
            for path, fault in zip(paths, readers.map(_Expected.fault, expected), strict=True):
                if fault is not None:
                    yield fault
                elif path.name.endswith(FOLDER_SUFFIX):
                    yield from self._broken_folder(path)

    def _broken_folder(self, path: Path) -> Iterator[Fault]:
        """Of a folder whose own object is right: files that are missing, a store that never was what it says."""
        files = self.files(path.parent.name + path.name)
        missing = [relative for relative, md5 in files.items() if not self.object_path(md5).is_file()]
        if missing:
            yield Fault(path, f"{len(missing)} of its {len(files)} files are missing, {missing[0]} for one")
        for relative, digest in self._digests_of_stores(files).items():
            kept = self.object_path(files[relative])
            fault = _Expected(kept, "sha256", digest).fault()
            if fault is not None and _Expected(kept, "md5", files[relative]).fault() is None:
                yield Fault(
                    kept, f"it is {relative} of the store {path.parent.name}{path.name}, which has another SHA-256"
                )

    def broken_results(self) -> Iterator[Fault]:
        """Compare every result with its name."""
        for path in self.result_paths():
            result = read_result(path)
            if result is None:
                yield Fault(path, "it is no description of a result")
            elif (path.parent.name, path.name) != (result_key(result), result_value(result)):
                yield Fault(path, "its content is another than its SHA-256 says")


def read_result(path: Path, mentioning: Collection[str] = ("",)) -> dict[str, Any] | None:
    """A result's description; None where the file is none, or mentions none of some texts.

    Arguments:
        path: the file.
        mentioning: the texts.

    Raises:
        FileNotFoundError: there is no file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if not any(part in text for part in mentioning):
            return None
        result = YAML(typ="safe").load(text)  # YAML 1.2, as DVC writes it
        _names(result, "outs")
        _names(result, "deps")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, YAMLError):
        return None
    return result if isinstance(result, dict) else None


def result_value(result: dict[str, Any]) -> str:
    """The name of a result: SHA-256 of its description, as DVC writes it."""
    return hashlib.sha256(json.dumps(_without_sizes(result), sort_keys=True).encode("utf-8")).hexdigest()


def result_key(result: dict[str, Any]) -> str:
    """The name of what a result depended on: the same without the content of what it made."""
    return result_value({**result, "outs": [out["path"] for out in result.get("outs", [])]})


def remove_result(path: Path) -> None:
    """Remove a result, and its key's folder with the last one: DVC fails over an empty one."""
    _remove(path)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def _without_sizes(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_sizes(element) for element in value]
    if isinstance(value, dict):
        return {key: _without_sizes(element) for key, element in value.items() if key not in NOT_HASHED}
    return value


def _names(result: dict[str, Any], kind: str) -> list[str]:
    """The objects among a result's `deps` or `outs`."""
    return [str(entry["md5"]) for entry in result.get(kind) or [] if "md5" in entry]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove(path: Path) -> None:
    """Remove a file, if it is there; only its name goes, where a run folder links to it."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def shared_cache(root: Path) -> Path:
    """The folder of the cache that all runs of a repository share.

    Arguments:
        root: the repository.

    Raises:
        DvcException: DVC's settings cannot be read.
    """
    from dvc.config import Config

    return Path(Config(str(root / ".dvc"))["cache"].get("dir") or root / ".dvc" / "cache").resolve()

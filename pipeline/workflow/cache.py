"""DVC as a run uses it: what is taken from the shared cache, or found there already, is compared with its name first.

DVC believes a cached object that is read-only, and links it into the run folder, whatever its bytes have become; and it
does not write an object anew that is there already, so that a stage which computes the right bytes again is handed the
broken ones. Here a broken object is thrown away before either happens; DVC then misses it, and the stage is computed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dvc.dependency.param import ParamsDependency
from dvc.output import Output
from dvc.repo import Repo
from dvc.stage import Stage
from dvc.stage.cache import StageCache, _can_hash
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils.serialize import ParseError, dumps_yaml

from pipeline.files import digest_of, write_json, write_text
from pipeline.fingerprints import ANY, VERSIONS_FILE, section_file
from pipeline.object_cache import Cache, remove_result, result_key, result_value
from pipeline.project import project_root, state_folder

__all__ = ["RunFolder", "code_of", "hashed_once", "own_copies", "read_json"]

COPIED_BYTES = 1 << 20  # a larger file in a run folder is a link to the cache's, read-only


class RunFolder(Repo):
    """The run folder as DVC sees it, with one memory of file hashes for all run folders of the project.

    DVC remembers the hash of a file that has not changed, in a folder for each project. Every run folder is a project,
    so each would hash a large local model anew, and leave that folder behind.

    Arguments:
        folder: the run folder.
        say: is told, in one line, of each artifact that was broken and is thrown away.
    """

    def __init__(self, folder: str, say: Callable[[str], None]) -> None:
        super().__init__(folder)
        self.stage_cache = CheckedResults(self, say)

    @property
    def site_cache_dir(self) -> str:
        """The folder of the memory, beside DVC's own, which is on this machine's disk."""
        name = digest_of("interpipe", str(project_root()), os.getuid())[:32]
        return str(Path(super().site_cache_dir).with_name(name))


class CheckedResults(StageCache):
    """DVC's run cache; each artifact is read once a run and compared with its name before it is taken.

    Arguments:
        repo: the run folder.
        say: see `RunFolder`.
    """

    def __init__(self, repo: Repo, say: Callable[[str], None]) -> None:
        super().__init__(repo)
        self.cache = Cache(repo.cache.legacy.path)
        self.say = say
        self.whole: set[tuple[str, Path | None]] = set()  # artifacts, and the places in which they are whole
        self.forget()

    def forget(self) -> None:
        """Begin with another stage: nothing is known of what it was computed with before."""
        self.newest: Path | None = None  # the result that was saved last, whatever versions it was computed with
        self.code: dict[str, str] | None = None  # module -> fingerprint

    def check(self, outs: list[Output], *, in_place: bool = False) -> bool:
        """Throw away what is broken of some artifacts; returns whether nothing was.

        Arguments:
            outs: the artifacts; one without a hash is none yet.
            in_place: they are up to date in the run folder, so their files there count too, and are removed if broken.
        """
        broken = False
        for out in outs:
            name = out.hash_info.value
            place = Path(out.fs_path) if in_place else None
            if not (out.use_cache and name) or (name, place) in self.whole:
                continue
            faults = self.cache.faults(name, place, _listed(out))
            if faults:
                broken = True
                self.cache.discard(faults, name)
                if in_place:
                    out.remove()
                more = f" and {len(faults) - 1} more" if faults[1:] else ""
                self.say(f"{out.def_path} was broken and is thrown away ({faults[0]}{more})")
            else:
                self.whole |= {(name, None), (name, place)}
                self.cache.trust(name)
        return not broken

    def _create_stage(self, cache: dict[str, Any], wdir: str | None = None) -> Stage:
        """DVC calls this for a result that it is about to take; what is broken of it is then missing."""
        stage = super()._create_stage(cache, wdir)
        self.check(stage.outs)
        return stage

    def save(self, stage: Stage) -> None:
        """DVC calls this when a stage's outputs are hashed and not yet in the cache."""
        self.check(stage.outs)
        super().save(stage)
        for out in stage.outs:
            if out.use_cache and out.hash_info.value:
                self.whole.add((out.hash_info.value, None))
                self.cache.trust(out.hash_info.value)
        self._save_for_any_versions(stage)
        self._save_code(stage)

    def _save_for_any_versions(self, stage: Stage) -> None:
        """Keep a stage's result also under the name that it has where versions of libraries do not matter.

        `cache.versions=warn` and `ignore` ask for that name, and so find what has been computed before they were set.
        """
        result = to_single_stage_lockfile(stage)
        sections = result.get("params", {}).get(VERSIONS_FILE)
        if not sections or not _can_hash(stage):
            return
        sections.update(dict.fromkeys(sections, ANY))
        key, value = result_key(result), result_value(result)
        folder = Path(self._get_cache_dir(key))
        self.newest = max(folder.glob("*"), key=lambda path: path.stat().st_mtime, default=None)
        path = Path(self._get_cache_path(key, value))
        if not path.exists():
            with contextlib.suppress(OSError):  # a cache that one may only read from, a full disk
                write_text(path, dumps_yaml(result))

    def _save_code(self, stage: Stage) -> None:
        """Keep by which code a stage was computed last from these inputs, so that the next run can say what changed."""
        result = to_single_stage_lockfile(stage)
        code = result.get("params", {}).pop(section_file(stage.addressing), None)
        if code is None:
            return
        result["params"].pop(VERSIONS_FILE, None)
        place = state_folder() / "code" / f"{stage.addressing}-{result_key(result)[:20]}.json"
        self.code = read_json(place)
        if self.code != code:
            with contextlib.suppress(OSError):  # a repository that one may only read
                write_json(place, code)

    def versions_before(self, stage: Stage) -> dict[str, str] | None:
        """The versions of libraries that a stage had been computed with, before it was computed now.

        Arguments:
            stage: the one that was saved last.

        Returns:
            None where it had never been computed.
        """
        result = self._load_cache(self.newest.parent.name, self.newest.name) if self.newest else None
        for out in result["outs"] if result else ():
            if out["path"] == f"versions/{stage.addressing}.json":
                return read_json(self.cache.object_path(out["md5"]))
        return None

    def _load_cache(self, key: str, value: str | None) -> dict[str, Any] | None:
        """One result; None, and its file is removed, where it is not what its name says.

        Arguments:
            key: the name of what it depended on.
            value: its own name; DVC gives None where the key's folder is empty.
        """
        if value is None:
            return None
        try:
            result = super()._load_cache(key, value)
        except ParseError:
            result = None
        if result is None or (result_key(result), result_value(result)) != (key, value):
            remove_result(Path(self._get_cache_path(key, value)))
            return None
        return result


def _listed(out: Output) -> dict[str, str] | None:
    """The objects of a folder by relative path, where DVC has just listed it."""
    if out.obj is None or not out.hash_info.isdir:
        return None
    return {"/".join(key): hash_info.value for key, _, hash_info in out.obj}


@contextlib.contextmanager
def hashed_once(stage: Stage) -> Iterator[None]:
    """Let DVC look through what a stage depends on once to see whether it has changed, not eight times.

    What it then notes of them is looked at anew.

    Arguments:
        stage: of the run folder.
    """
    looked_at = [dependency for dependency in stage.deps if not isinstance(dependency, ParamsDependency)]
    for dependency in looked_at:
        dependency.get_hash = functools.cache(dependency.get_hash)
    try:
        yield
    finally:
        for dependency in looked_at:
            del dependency.get_hash


def code_of(stage: Stage) -> dict[str, str]:
    """The fingerprints of a stage's code: as `dvc.lock` has them, or, when the stage is done, as they are.

    Arguments:
        stage: of a run folder; one that has no such section, or has not been computed, has none.
    """
    file = section_file(stage.addressing)
    found = [d.hash_info.value for d in stage.deps if d.def_path == file and isinstance(d.hash_info.value, dict)]
    return dict(found[0]) if found else {}


def read_json(path: Path) -> dict[str, str] | None:
    """A record of versions or of fingerprints; None where there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def own_copies(stage: Stage) -> None:
    """Give the run folder its own copy of each small file, so that what happens to it does not happen to the cache's.

    A large file stays a read-only link to the cache's, if there is no copy-on-write.

    Arguments:
        stage: whose outputs are there.
    """
    for out in stage.outs:
        top = Path(out.fs_path)
        for path in [top, *top.rglob("*")] if out.use_cache else ():
            small = path.is_file() and path.stat().st_size <= COPIED_BYTES
            if small and (path.is_symlink() or path.stat().st_nlink > 1):
                out.cache.unprotect(str(path))

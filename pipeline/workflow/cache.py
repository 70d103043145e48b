"""DVC as a run uses it: what is taken from the shared cache, or found there already, is compared with its name first.

DVC believes a cached object that is read-only, and links it into the run folder, whatever its bytes have become; and it
does not write an object anew that is there already, so that a stage which computes the right bytes again is handed the
broken ones. Here a broken object is thrown away before either happens; DVC then misses it, and the stage is computed.

DVC also empties its own files and fills them in place, and parses each of them several times a stage: here they are
mended where it was killed meanwhile, and parsed once.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from dvc.dependency.param import ParamsDependency
from dvc.dvcfile import LOCK_FILE, PROJECT_FILE, Lockfile
from dvc.output import Output
from dvc.repo import Repo
from dvc.stage import Stage
from dvc.stage.cache import StageCache, _can_hash
from dvc.stage.serialize import to_lockfile, to_single_stage_lockfile
from dvc.utils.serialize import ParseError, _yaml, dumps_yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.files import digest_of, write_json, write_text
from pipeline.fingerprints import ANY, VERSIONS_FILE, section_file
from pipeline.object_cache import Cache, remove_result, result_key, result_value
from pipeline.project import project_root, state_folder

__all__ = [
    "RunFolder",
    "code_of",
    "forget_the_dead",
    "hashed_once",
    "is_whole",
    "mend_lock",
    "own_copies",
    "parsed_once",
    "read_json",
    "write_lock",
]


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


LOCK_HEAD = "schema: '2.0'\nstages:\n"  # how DVC begins it; an entry's own lines are indented deeper than its name


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """Let DVC parse each text of YAML once.

    It reads `params.yaml`, `dvc.lock` and a stage's results several times a stage, with a parser in Python: most of
    what a run costs in which everything is cached.
    """
    parse = _yaml.parse_yaml
    known: dict[str, Any] = {}

    def remembered(text: str, path: Any, typ: str = "safe") -> Any:
        if typ != "safe":  # with the comments, to be changed and written again
            return parse(text, path, typ)
        if text not in known:
            known[text] = parse(text, path)
        return copy.deepcopy(known[text])

    _yaml.parse_yaml = remembered
    try:
        yield
    finally:
        _yaml.parse_yaml = parse


def forget_the_dead(folder: Path) -> None:
    """Remove what killed processes hold of a run folder in DVC's eyes.

    DVC does so itself for a process that is not there; but one that was killed together with its parent may stay as a
    zombie for as long as nobody collects it, which in a container without an init process is for ever.

    Arguments:
        folder: the run folder; the driver holds it, so that no other driver is at work there.
    """
    path = folder / ".dvc" / "tmp" / "rwlock"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:  # killed while it wrote; DVC would refuse to go on
        path.unlink()
        return

    def lives(holder: dict[str, Any]) -> bool:
        try:
            return psutil.Process(holder["pid"]).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    writers = {path: holder for path, holder in held.get("write", {}).items() if lives(holder)}
    readers = {path: [holder for holder in holders if lives(holder)] for path, holders in held.get("read", {}).items()}
    write_json(path, {"write": writers, "read": {path: holders for path, holders in readers.items() if holders}})


def write_lock(stage: Stage) -> None:
    """Write a stage into `dvc.lock`, by one rename; DVC itself empties the file and takes up to seconds to fill it.

    The other stages' lines stay as they are: to read and write all of them again takes longest.

    Arguments:
        stage: one that is done.
    """
    path = Path(stage.wdir, LOCK_FILE)
    text = path.read_text(encoding="utf-8") if path.exists() else LOCK_HEAD
    entry = dumps_yaml({"schema": "2.0", "stages": to_lockfile(stage)})
    if _is_plain(text) and _is_plain(entry):
        entries = _entries(text) | _entries(entry)
        write_text(path, LOCK_HEAD + "".join(entries.values()))
        return
    staged = path.with_name(f".{path.name}.incoming")  # another version of DVC, or the user, wrote it otherwise
    shutil.copyfile(path, staged)
    Lockfile(stage.repo, str(staged)).dump_stages([stage])
    os.replace(staged, path)


def _is_plain(text: str) -> bool:
    """Whether a lock file holds stages alone, and is written as DVC writes them."""
    lines = text.removeprefix(LOCK_HEAD).splitlines()
    return text.startswith(LOCK_HEAD) and text.endswith("\n") and all(line.startswith("  ") for line in lines if line)


def _entries(text: str) -> dict[str, str]:
    """The lines of each stage of a plain lock file, by the first of them."""
    parts = re.split(r"^(?=  \S)", text.removeprefix(LOCK_HEAD), flags=re.MULTILINE)
    return {part.partition("\n")[0]: part for part in parts if part}


def mend_lock(folder: Path) -> bool:
    """Remove a `dvc.lock` over which plain `dvc` was killed: the run cache knows all that it said.

    Arguments:
        folder: the run folder.

    Returns:
        Whether there was one.
    """
    path = folder / LOCK_FILE
    if not path.exists():
        return False
    described = YAML(typ="safe").load((folder / PROJECT_FILE).read_text(encoding="utf-8"))
    if not isinstance(described, dict) or not isinstance(described.get("stages"), dict):
        return False  # DVC says what is wrong with it
    if is_whole(path.read_bytes(), {name: _outs(stage) for name, stage in described["stages"].items()}):
        return False
    path.unlink()
    return True


def _outs(stage: dict[str, Any]) -> list[str]:
    """The outputs of a stage of `dvc.yaml`; one with options is a mapping of one key."""
    listed = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind) or []]
    return [out if isinstance(out, str) else str(next(iter(out))) for out in listed]


def is_whole(content: bytes, outs: Mapping[str, Sequence[str]]) -> bool:
    """Whether a `dvc.lock` was written to its end, or at least to the end of a stage.

    The beginning of a lock file may be right YAML, of which DVC then believes a shortened hash. A stage's outputs stand
    last in its entry, so where they are all there, with all that DVC notes of them, the entry is.

    Arguments:
        content: of the file.
        outs: the outputs of each stage, by `dvc.yaml`.
    """
    try:
        stages = YAML(typ="safe").load(content.decode("utf-8"))["stages"]
        if not content.endswith(b"\n"):
            return False
        return all(_is_whole_entry(entry, outs.get(name)) for name, entry in stages.items())
    except (ValueError, TypeError, KeyError, AttributeError, YAMLError):
        return False


def _is_whole_entry(entry: dict[str, Any], outs: Sequence[str] | None) -> bool:
    if outs is None:  # a stage that dvc.yaml no longer has
        return True
    found = {out["path"]: out for out in entry["outs"]}
    noted = all("size" in out and ("nfiles" in out) == out["md5"].endswith(".dir") for out in found.values())
    return noted and set(found) == set(outs)

"""DVC's own files: those that it empties and fills in place, where it is killed meanwhile, and the parsing of them."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from dvc.dvcfile import LOCK_FILE, PROJECT_FILE, Lockfile
from dvc.stage import Stage
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import _yaml, dumps_yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.files import write_json, write_text

__all__ = ["forget_the_dead", "is_whole", "mend_lock", "parsed_once", "write_lock"]

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

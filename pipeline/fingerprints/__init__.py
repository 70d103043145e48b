"""Fingerprint each stage's code, one a module, and name its libraries' versions, so that DVC knows what is up to date.

    of_stages()["lens"]  # {"interp.readout.ranks": "3f6c...", "pipeline.stages.lens": "90ab...", ...}

A comment, a docstring, a formatting, a hint changes none. A stage has the modules that it reaches by name, see
`pipeline.fingerprints.reach`. Nothing is imported for it but the standard library and PyYAML.

Code of a user's own is fingerprinted like ours. `of_stages(roots={"my_lab": folder}, extra={"lens":
["my_lab.lenses"]})` adds what these modules reach, in `my_lab`, `interp` and `pipeline`, to the sections of the stages
that use them; `fingerprints(modules, roots)` is the same for any modules.

Of libraries, every stage depends on its own section of `versions.json`, which stage `code` writes: the minor version of
each library that `dvc.yaml` lists for it (`meta: libraries`), so that an upgrade computes it again; and it leaves the
whole versions that it was computed with in `versions/NAME.json`, which is cached with the rest of what it makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from interp.errors import InterpError
from pipeline.files import write_json
from pipeline.fingerprints.reach import Code
from pipeline.project import CODE, shipped, state_folder

__all__ = [
    "ANY", "VERSIONS_FILE", "Code", "changed_modules", "changes", "fingerprints", "installed", "libraries",
    "load_stages", "minor", "minor_versions", "of_stages", "section_file", "write_record",
]  # fmt: skip


OURS = ("interp", "pipeline")
KEPT = Path("cache", "meanings.json")
ALWAYS_RUN = "code"  # the stage that writes the sections; it computes nothing, so it has none
PRINTS_ALL_CODE = "report"  # the page says which code made the run, so it is of that code


def fingerprints(modules: Iterable[str], roots: Mapping[str, Path], kept: Path | None = None) -> dict[str, str]:
    """The fingerprint of each module that some modules reach, themselves included, and of each file that one names.

    Arguments:
        modules: dotted names below the roots.
        roots: top-level name -> the folder of the package, or the file of a module that is none. What lies outside the
            roots is no code of ours: its version counts.
        kept: a file in which what files mean is kept between processes, under the digest of their bytes; None: nowhere.

    Returns:
        Dotted name of a module, or path of a file from the folder above its root, -> fingerprint; sorted.

    Raises:
        InterpError: there is no such module, or a file that is reached is not Python.
    """
    code = Code(roots, kept)
    found = _of(code, modules)
    code.kept.write()
    return found


def of_stages(
    stages: Iterable[str] | None = None,
    *,
    root: Path | None = None,
    extra: Mapping[str, Iterable[str]] | None = None,
    roots: Mapping[str, Path] | None = None,
) -> dict[str, dict[str, str]]:
    """The fingerprints of each stage of `dvc.yaml`: stage -> module -> fingerprint.

    Arguments:
        stages: which; None: all.
        root: the folder that holds `interp`, `pipeline` and `dvc.yaml`; None: the code that runs.
        extra: stage -> modules that it uses though no module of its own names them.
        roots: where these lie: top-level name -> folder or file.

    Raises:
        InterpError: a stage's command is not `python -m MODULE`; and as `fingerprints`.
    """
    kept = (state_folder() if root is None else root / ".interpipe") / KEPT
    code = Code({name: (root or CODE) / name for name in OURS} | dict(roots or {}), kept)
    wanted = None if stages is None else set(stages)
    modules = {}
    for name, stage in load_stages(root).items():
        command = str(stage["cmd"]).split()
        if command[:2] != ["python", "-m"] or len(command) != 3:
            raise InterpError(f"dvc.yaml, stage {name}: expected `python -m MODULE`, got {stage['cmd']!r}.")
        if name != ALWAYS_RUN:
            runs = f"{command[2]}.__main__" if code.module(f"{command[2]}.__main__") else command[2]  # as Python does
            modules[name] = [runs, *(extra or {}).get(name, ())]
    found = {}
    for name, entries in modules.items():
        if wanted is None or name in wanted:
            whole = sorted(set().union(*modules.values())) if name == PRINTS_ALL_CODE else entries
            found[name] = _of(code, whole)
    code.kept.write(whole=wanted is None)
    return found


def _of(code: Code, modules: Iterable[str]) -> dict[str, str]:
    try:
        return code.fingerprints(modules)
    except SyntaxError as error:
        raise InterpError(f"{error.filename}, line {error.lineno}: expected Python, found {error.msg}.") from None


def load_stages(root: Path | None = None) -> dict[str, dict[str, Any]]:
    """The stages of `dvc.yaml`, as they stand there.

    Arguments:
        root: the folder that holds it; None: that of the code that runs.
    """
    place = shipped("dvc.yaml") if root is None else root / "dvc.yaml"
    text = place.read_text(encoding="utf-8")
    stages: dict[str, dict[str, Any]] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"]
    return stages


def section_file(stage: str) -> str:
    """Where stage `code` leaves a stage's section, in a run folder."""
    return f"code/{stage}.json"


def changed_modules(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The modules whose fingerprints differ, those that one side lacks included; sorted.

    Arguments:
        before, now: module -> fingerprint.
    """
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


VERSIONS_FILE = "versions.json"
ANY = "any"  # in place of a stage's versions, where they are not to matter
ABSENT = "absent"


def libraries() -> dict[str, list[str]]:
    """The libraries that each stage's numbers come from, by stage, as `dvc.yaml` lists them."""
    stages = load_stages()
    return {name: list((stage.get("meta") or {}).get("libraries") or []) for name, stage in stages.items()}


def installed(stage: str) -> dict[str, str]:
    """The whole versions of a stage's libraries as they are installed; nothing is imported for it.

    Arguments:
        stage: its name.
    """
    return {library: _installed(library) for library in sorted(libraries().get(stage, []))}


def _installed(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:  # an optional one
        return ABSENT


def minor(version: str) -> str:
    """The part of a version that makes results another one: `2.13` of `2.13.0+cpu`."""
    return ".".join(version.split("+")[0].split(".")[:2])


def minor_versions() -> dict[str, dict[str, str]]:
    """The minor versions of the libraries of each stage that has some: stage -> library -> version."""
    return {
        name: {library: minor(_installed(library)) for library in sorted(listed)}
        for name, listed in libraries().items()
        if listed
    }


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, list[str]]:
    """The libraries whose minor versions differ: library -> whole versions before and now.

    Arguments:
        before, now: whole versions by library; a library that one lacks is absent there.
    """
    pairs = {name: [before.get(name, ABSENT), now.get(name, ABSENT)] for name in sorted({*before, *now})}
    return {name: pair for name, pair in pairs.items() if minor(pair[0]) != minor(pair[1])}


def write_record(stage: str) -> None:
    """Leave the versions that a stage has been computed with beside its artifacts.

    Arguments:
        stage: its name.
    """
    if versions := installed(stage):
        write_json(f"versions/{stage}.json", versions)

"""Which versions of libraries each stage's numbers come from.

Every stage depends on its own section of `versions.json`, which stage `code` writes: the minor version of each library
that `dvc.yaml` lists for it (`meta: libraries`), so that an upgrade computes it again; and it leaves the whole versions
that it was computed with in `versions/NAME.json`, which is cached with the rest of what it makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from pipeline.files import write_json
from pipeline.fingerprints import load_stages

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

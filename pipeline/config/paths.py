"""Rewrite paths that are relative to where a user stands so that they hold in every run folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from pipeline.config.section import ConfigError, check_text
from pipeline.project import CODE, LINKED, project_root
from pipeline.tables.table import is_table_file

HUB_MODEL = "pipeline/config/hub_model.txt"
HUB_DATASET = "pipeline/config/hub_dataset.txt"

LONGEST_NAME, LONGEST_PATH = 255, 3800  # bytes; Linux's 4096 less what a run folder holds


def located(path: str) -> Path:
    """Where a path of a localized config is; relative ones are reached through a run folder's links."""
    return CODE / path


def check_path(where: str, path: str | Path) -> Path:
    """Check whether a path can be one at all.

    Arguments:
        where: key of the config, for messages.
        path: absolute or from where the user stands; `~` is the user's home.

    Returns:
        It, absolute.

    Raises:
        ConfigError: it has characters that no path should have, too long a name, or the home of nobody.
    """
    check_text(where, str(path))
    try:
        whole = Path(os.path.abspath(Path(path).expanduser()))
    except RuntimeError as error:  # `~nobody`
        raise ConfigError(f"{where}: expected a path, got {str(path)[:80]!r}: {error}") from None
    longest = max(whole.parts, key=lambda part: len(os.fsencode(part)))
    if len(os.fsencode(longest)) > LONGEST_NAME or len(os.fsencode(whole)) > LONGEST_PATH:
        raise ConfigError(
            f"{where}: expected names of at most {LONGEST_NAME} bytes and {LONGEST_PATH} in all, got one of "
            f"{len(os.fsencode(longest))} and {len(os.fsencode(whole))} in all: {longest[:60]!r}. Choose another."
        )
    return whole


def check_place(where: str, place: str | Path) -> None:
    """Check whether a run or a sweep can have a folder, as far as its name and its neighbours tell.

    Arguments:
        where: key of the config, for messages.
        place: of the folder, absolute or from where the user stands.

    Raises:
        ConfigError: the name cannot be one, the folder is a file, it is the project's own, or there is no project.
    """
    folder = check_path(where, place)
    for above in (folder, *folder.parents):
        if os.path.exists(above) and not os.path.isdir(above):
            raise ConfigError(f"{where}: expected a folder, got {folder}, where {above} is a file. Choose another one.")
    try:
        project = project_root()
    except InterpError as error:
        raise ConfigError(str(error)) from None
    reserved = [CODE / name for name in LINKED] + [project / name for name in ("conf", ".dvc", ".git")]
    real = Path(os.path.realpath(folder))
    if real in (project, CODE) or any(real.is_relative_to(own) for own in reserved):
        raise ConfigError(
            f"{where}: expected a folder of its own, got {folder}, which is the project's. Choose e.g. outputs/NAME."
        )


def is_local(source: str, standing: Path) -> bool:
    """Whether a model's or a dataset's source names a place on disk, and not a repository of the hub.

    Arguments:
        source: as the user wrote it.
        standing: the folder in which the user stood.
    """
    if source.startswith(("/", "./", "../", "~", "pipeline/", "interp/")) or source in {".", ".."}:
        return True
    if is_table_file(source) or source.count("/") > 1:  # a hub id has one slash at most
        return True
    return (standing / source).exists()


def localized_path(path: str, standing: Path) -> str:
    """One path, valid in every run folder.

    Arguments:
        path: as the user wrote it; relative to `standing`, or, under `pipeline/` or `interp/`, to where the code lies.
        standing: the folder in which the user stood.

    Returns:
        A relative path under `pipeline/` or `interp/`, so that run folders anywhere share one cache entry; else an
        absolute one.
    """
    absolute = Path(os.path.abspath(standing / Path(path).expanduser()))
    if Path(path).parts[:1] and Path(path).parts[0] in LINKED and not absolute.exists():
        absolute = CODE / path
    for start in (CODE, Path(os.path.abspath(standing))):  # links count as what they point at only if they are ours
        if absolute.is_relative_to(start):
            relative = absolute.relative_to(start)
            if relative.parts[:1] and relative.parts[0] in LINKED and (CODE / relative).resolve() == absolute.resolve():
                return relative.as_posix()
    return str(absolute)


def localize_source(section: dict[str, Any], where: str, hub: str | None, standing: Path) -> None:
    """Localize the source that a section names, and what its stages depend on, in place.

    Arguments:
        section: the section as plain containers.
        where: key of its source in the config.
        hub: the marker file that its stages depend on where the source is on the hub; None: it cannot be.
        standing: the folder in which the user stood.

    Raises:
        ConfigError: it can be no path.
    """
    key = where.rpartition(".")[2]
    source = section.get(key)
    if not isinstance(source, str) or not source or source == "???":
        return
    check_path(where, source)
    local = hub is None or is_local(source, standing)
    if local:
        section[key] = localized_path(source, standing)
    depends_on = section.get("depends_on")
    if depends_on in (source, hub):  # not one that the user chose
        section["depends_on"] = section[key] if local else hub
    elif isinstance(depends_on, str) and depends_on != "???":
        check_path(f"{where.partition('.')[0]}.depends_on", depends_on)
        section["depends_on"] = localized_path(depends_on, standing)

"""From paths as the user wrote them, where they stood, to paths that hold in every run folder."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from pipeline.config.base import ConfigError, check_text
from pipeline.plugins import localized
from pipeline.project import CODE, LINKED, project_root
from pipeline.tables.names import is_table_file

HUB_MODEL = "pipeline/config/hub_model.txt"
HUB_DATASET = "pipeline/config/hub_dataset.txt"
RELATIVE_DATABASE = re.compile(r"sqlite:///([^/].*)")

LONGEST_NAME, LONGEST_PATH = 255, 3800  # bytes; Linux's 4096 less what a run folder holds

# The key of each kind of task that names its input file.
TASK_FILES = {"translation": "lexicon", "cloze": "sentences", "next_token": "source", "attribute_extraction": "source"}


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


def localize(values: dict[str, Any], standing: Path) -> dict[str, Any]:
    """A config whose paths hold in every run folder, and whose stages depend on what the paths name.

    Arguments:
        values: the whole config as plain containers; it may still be wrong elsewhere.
        standing: the folder in which the user stood.

    Returns:
        A copy in which the model's source, the task's file, the tuned lens's source, each `depends_on`, the plugins and
        a tracking database are localized.

    Raises:
        ConfigError: one of them can be no path.
    """
    values = copy.deepcopy(values)
    model, task = values.get("model"), values.get("task")
    if isinstance(model, dict):
        _localize(model, "model.source", HUB_MODEL, standing)
    if isinstance(task, dict) and task.get("kind") in TASK_FILES:
        hub = HUB_DATASET if task["kind"] == "next_token" else None
        _localize(task, f"task.{TASK_FILES[task['kind']]}", hub, standing)
    tune = values.get("tune")
    if isinstance(tune, dict) and tune.get("kind") in ("text", "lens"):
        _localize(tune, "tune.source", HUB_DATASET if tune["kind"] == "text" else None, standing)
    if "plugins" in values:
        try:
            values["plugins"] = localized(values["plugins"], standing)
        except InterpError as error:
            raise ConfigError(f"plugins: {error}") from None
    tracking = values.get("tracking")
    if isinstance(tracking, dict) and (database := RELATIVE_DATABASE.fullmatch(str(tracking.get("uri")))):
        tracking["uri"] = f"sqlite:///{(standing / database[1]).absolute()}"
    return values


def _localize(section: dict[str, Any], where: str, hub: str | None, standing: Path) -> None:
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

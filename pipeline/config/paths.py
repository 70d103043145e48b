"""From paths as the user wrote them, where they stood, to paths that hold in every run folder."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import pipeline
from pipeline.tables.names import is_table_file

ROOT = Path(pipeline.__file__).resolve().parent.parent
LINKED = ("interp", "pipeline")  # a run folder links to these folders of the repository
HUB_MODEL = "pipeline/config/hub_model.txt"
HUB_DATASET = "pipeline/config/hub_dataset.txt"
RELATIVE_DATABASE = re.compile(r"sqlite:///([^/].*)")

# The key of each kind of task that names its input file.
TASK_FILES = {"translation": "lexicon", "cloze": "sentences", "next_token": "source", "attribute_extraction": "source"}


def located(path: str) -> Path:
    """Where a path of a localized config is; relative ones are reached through a run folder's links."""
    return ROOT / path


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
        path: as the user wrote it; relative to `standing`, or, under `pipeline/` or `interp/`, to the repository.
        standing: the folder in which the user stood.

    Returns:
        A relative path under `pipeline/` or `interp/`, so that run folders anywhere share one cache entry; else an
        absolute one.
    """
    absolute = Path(os.path.abspath(standing / Path(path).expanduser()))
    if Path(path).parts[:1] and Path(path).parts[0] in LINKED and not absolute.exists():
        absolute = ROOT / path
    for start in (ROOT, Path(os.path.abspath(standing))):  # links count as what they point at only if they are ours
        if absolute.is_relative_to(start):
            relative = absolute.relative_to(start)
            if relative.parts[:1] and relative.parts[0] in LINKED and (ROOT / relative).resolve() == absolute.resolve():
                return relative.as_posix()
    return str(absolute)


def localize(values: dict[str, Any], standing: Path) -> dict[str, Any]:
    """A config whose paths hold in every run folder, and whose stages depend on what the paths name.

    Arguments:
        values: the whole config as plain containers; it may still be wrong elsewhere.
        standing: the folder in which the user stood.

    Returns:
        A copy in which the model's source, the task's file, the tuned lens's source, each `depends_on` and a tracking
        database are localized.
    """
    values = copy.deepcopy(values)
    model, task = values.get("model"), values.get("task")
    if isinstance(model, dict):
        _localize(model, "source", HUB_MODEL, standing)
    if isinstance(task, dict) and task.get("kind") in TASK_FILES:
        hub = HUB_DATASET if task["kind"] == "next_token" else None
        _localize(task, TASK_FILES[task["kind"]], hub, standing)
    tune = values.get("tune")
    if isinstance(tune, dict) and tune.get("kind") in ("text", "lens"):
        _localize(tune, "source", HUB_DATASET if tune["kind"] == "text" else None, standing)
    tracking = values.get("tracking")
    if isinstance(tracking, dict) and (database := RELATIVE_DATABASE.fullmatch(str(tracking.get("uri")))):
        tracking["uri"] = f"sqlite:///{(standing / database[1]).absolute()}"
    return values


def _localize(section: dict[str, Any], key: str, hub: str | None, standing: Path) -> None:
    source = section.get(key)
    if not isinstance(source, str) or not source or source == "???":
        return
    local = hub is None or is_local(source, standing)
    if local:
        section[key] = localized_path(source, standing)
    depends_on = section.get("depends_on")
    if depends_on in (source, hub):  # not one that the user chose
        section["depends_on"] = section[key] if local else hub
    elif isinstance(depends_on, str) and depends_on != "???":
        section["depends_on"] = localized_path(depends_on, standing)

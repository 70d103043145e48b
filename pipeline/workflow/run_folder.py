"""A run folder: a DVC project of its own that links to the code and shares its project's one cache.

    outputs/2026-01-31/12-00-00/
        params.yaml             the resolved config
        dvc.yaml .dvcignore     copies of this version's
        interp pipeline         links to the code
        .dvc/config             the cache of the project; no git
        .dvc/project            a link to the project, wherever the run folder lies
        .dvc/params.yaml        a copy of params.yaml, for when that is left in half

Commands and relative paths are the same in every run folder and at the root, so DVC's run cache serves any stage that
has been computed before. `no_scm` is what lets a run folder lie in `outputs/`, which git ignores.
"""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from interp.errors import InterpError
from pipeline.files import write_text
from pipeline.object_cache import shared_cache
from pipeline.project import PROJECT_LINK, link_code, project_root, set_link, shipped

__all__ = ["prepare", "read_params"]

COPIED = ("dvc.yaml", ".dvcignore")
KEPT_PARAMS = Path(".dvc", "params.yaml")
log = logging.getLogger("interpipe")


def read_params(folder: str | Path) -> dict[str, Any]:
    """The config of a run folder, as plain containers.

    Arguments:
        folder: the run folder.

    Raises:
        InterpError: it is not a run folder.
    """
    path = Path(folder) / "params.yaml"
    if not path.is_file():
        raise InterpError(f"expected a run folder with params.yaml, got {folder}. `python -m pipeline` makes one.")
    _mend_params(Path(folder))
    params = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(params, dict)
    return {str(section): values for section, values in params.items()}


def prepare(folder: str | Path, params: dict[str, Any]) -> Path:
    """Make a run folder, or make an existing one ready to go on with the same config and the present code.

    Arguments:
        folder: its place; it may exist and hold other files.
        params: the config as plain containers, nothing left to interpolate.

    Returns:
        The folder, absolute, free of links.

    Raises:
        InterpError: the folder holds a run with another config, or there is no project that it could belong to.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    project = project_root(folder if (folder / PROJECT_LINK).is_dir() else None)
    _write_params(folder, params)
    for name in COPIED:
        write_text(folder / name, shipped(name).read_text(encoding="utf-8"))
    link_code(folder, project)
    _configure(folder, project)
    inside = folder.is_relative_to(project)
    set_link(folder / PROJECT_LINK, Path(os.path.relpath(project, folder / ".dvc")) if inside else project)
    return folder


def _write_params(folder: Path, params: dict[str, Any]) -> None:
    path = folder / "params.yaml"
    if path.exists():
        present = read_params(folder)
        different = [s for s in sorted(present.keys() | params.keys()) if present.get(s) != params.get(s)]
        if different:
            raise InterpError(
                f"{folder} holds a run with another config (sections that differ: {', '.join(different)}). Choose "
                "another folder, or go on with the run as it is: python -m pipeline.workflow resume FOLDER"
            )
        return
    text = OmegaConf.to_yaml(OmegaConf.create(params))  # the same text as DVC's own
    write_text(folder / KEPT_PARAMS, text)
    write_text(path, text)


def _mend_params(folder: Path) -> None:
    """Restore a `params.yaml` that some program emptied or left in half: one that its kept copy begins with."""
    path, kept = folder / "params.yaml", folder / KEPT_PARAMS
    if not kept.is_file():
        return
    text, found = kept.read_bytes(), path.read_bytes()
    if found != text and text.startswith(found):
        write_text(path, text.decode("utf-8"))
        log.warning("%s held only the beginning of the run's config; it is restored", path)


def _configure(folder: Path, project: Path) -> None:
    """Point the run folder's DVC at the project's cache; settings that the user added stay."""
    # What DVC writes its settings with; its own `Config.edit` fails on paths that are not ASCII.
    from configobj import ConfigObj, ConfigObjError  # type: ignore[import-untyped]
    from dvc.config import Config
    from dvc.exceptions import DvcException

    place = folder / ".dvc" / "config"
    place.parent.mkdir(exist_ok=True)
    try:
        ConfigObj(str(place), encoding="utf-8", interpolation=False)
    except ConfigObjError as error:
        aside = place.with_name("config.unreadable")
        os.replace(place, aside)
        log.warning("the settings of DVC in %s cannot be read (%s); they are now in %s, new ones are written",
                    place, error, aside.name)  # fmt: skip
    try:
        shared = Config(str(project / ".dvc"))["cache"]
        cache = shared_cache(project)
        settings = ConfigObj(str(place), encoding="utf-8", interpolation=False)
    except DvcException as error:
        raise InterpError(f"the settings of DVC in {project / '.dvc'} cannot be read: {error}") from None
    # Relative where both lie in the project, so that it can be moved with its runs.
    inside = folder.is_relative_to(project) and cache.is_relative_to(project)
    for section, values in {
        "core": {"no_scm": "true", "analytics": "false", "autostage": "false", "check_update": "false"},
        "cache": {
            "dir": os.path.relpath(cache, place.parent) if inside else str(cache),
            "type": ",".join(shared.get("type") or ["reflink", "copy"]),
        },
    }.items():
        settings.setdefault(section, {}).update(values)
    text = io.BytesIO()
    settings.write(text)
    write_text(place, text.getvalue().decode("utf-8"))

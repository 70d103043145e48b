"""A run folder: a DVC project of its own that shares the repository's code and its one cache.

    outputs/2026-01-31/12-00-00/
        params.yaml             the resolved config
        dvc.yaml .dvcignore     copies of the repository's
        interp pipeline         links to the repository's code
        .dvc/config             the repository's cache; no git

Commands and relative paths are the same in every run folder and at the root, so DVC's run cache serves any stage that
has been computed before. `no_scm` is what lets a run folder lie in `outputs/`, which git ignores.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from interp.errors import InterpError
from pipeline.config.paths import LINKED, ROOT

__all__ = ["prepare", "read_params"]

COPIED = ("dvc.yaml", ".dvcignore")


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
        InterpError: the folder holds a run with another config.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    _write_params(folder, params)
    for name in COPIED:
        shutil.copyfile(ROOT / name, folder / name)
    for name in LINKED:
        _link(folder / name, Path(os.path.relpath(ROOT / name, folder)))
    _configure(folder)
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
    staged = folder / ".params.yaml.incoming"
    staged.write_text(OmegaConf.to_yaml(OmegaConf.create(params)), encoding="utf-8")  # the same text as DVC's own
    os.replace(staged, path)


def _link(place: Path, target: Path) -> None:
    """Link to a folder; what is there and is no such link is never removed, unless it is a link that went stale."""
    if place.is_symlink():
        if Path(os.readlink(place)) == target:
            return
        place.unlink()
    elif place.exists():
        raise InterpError(f"expected no {place.name!r} of its own in run folder {place.parent}. Choose another folder.")
    place.symlink_to(target, target_is_directory=True)


def _configure(folder: Path) -> None:
    """Point the run folder's DVC at the repository's cache; settings that the user added stay."""
    # What DVC writes its settings with; its own `Config.edit` fails on paths that are not ASCII.
    from configobj import ConfigObj, ConfigObjError  # type: ignore[import-untyped]
    from dvc.config import Config
    from dvc.exceptions import DvcException

    place = folder / ".dvc" / "config"
    place.parent.mkdir(exist_ok=True)
    try:
        shared = Config(str(ROOT / ".dvc"))["cache"]
        settings = ConfigObj(str(place), encoding="utf-8", interpolation=False)
    except (DvcException, ConfigObjError) as error:
        raise InterpError(f"the settings of DVC in {ROOT / '.dvc'} or in {place} cannot be read: {error}") from None
    cache = Path(shared.get("dir") or ROOT / ".dvc" / "cache").resolve()
    # Relative where both lie in the repository, so that the repository can be moved with its runs.
    inside = folder.is_relative_to(ROOT) and cache.is_relative_to(ROOT)
    for section, values in {
        "core": {"no_scm": "true", "analytics": "false", "autostage": "false", "check_update": "false"},
        "cache": {
            "dir": os.path.relpath(cache, place.parent) if inside else str(cache),
            "type": ",".join(shared.get("type") or ["reflink", "copy"]),
        },
    }.items():
        settings.setdefault(section, {}).update(values)
    settings.write()

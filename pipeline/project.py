"""Find the folder of the code, and the folder of a project: its runs, its cache, its MLflow database.

    CODE      the folder of `interp` and `pipeline`: a checkout, or site-packages, where nothing is ever written
    shipped   `conf/`, `dvc.yaml` and the like: beside the code in a checkout, in `pipeline/_data` in a wheel
    project   the nearest folder, from the current one upward, that is a project; a checkout is one

A project is a folder with `interpipe.toml`; `interpipe new FOLDER` makes one. A run folder may lie anywhere: its link
`.dvc/project` names its project.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from interp.errors import InterpError

__all__ = [
    "CODE", "LINKED", "MARKER", "OVERLAY", "PROJECT_LINK", "find_project", "is_checkout", "link_code",
    "overlay", "project_root", "set_link", "shipped", "state_folder",
]  # fmt: skip

CODE = Path(__file__).resolve().parent.parent
LINKED = ("interp", "pipeline")  # what stages' commands and paths name: run folders and projects link to it
MARKER = "interpipe.toml"
PROJECT_LINK = Path(".dvc", "project")  # in a run folder
DATA = CODE / "pipeline" / "_data"  # made by setup.py; a checkout has none
OVERLAY = "conf"  # choices of the project's own, beside the shipped ones


def is_checkout() -> bool:
    """Whether the code is a checkout's, and not installed from a wheel."""
    return not DATA.is_dir()


def shipped(name: str) -> Path:
    """The place of `conf`, `dvc.yaml`, `params.yaml` or `.dvcignore`, as this version of the code has them."""
    # In a wheel `.dvcignore` has no dot: DVC refuses one inside a folder that it tracks.
    return CODE / name if is_checkout() else DATA / name.lstrip(".")


def find_project(start: Path | None = None) -> Path | None:
    """The project that a folder belongs to; None: there is none.

    Arguments:
        start: the folder; None: the current one.

    A checkout is the project of whoever stands in it, or in no project.
    """
    start = Path.cwd() if start is None else start.absolute()
    for folder in (start, *start.parents):
        if (folder / MARKER).is_file() or (folder == CODE and is_checkout()):
            return folder
        if (folder / PROJECT_LINK).is_dir():
            return (folder / PROJECT_LINK).resolve()
    return CODE if is_checkout() else None


def project_root(start: Path | None = None) -> Path:
    """As `find_project`.

    Raises:
        InterpError: there is no project.
    """
    found = find_project(start)
    if found is None:
        raise InterpError(
            f"expected a project: {MARKER} in {start or Path.cwd()} or a folder above it, found none. Go into your "
            "project, or make one: interpipe new FOLDER"
        )
    return found


def state_folder() -> Path:
    """`.interpipe` of the project; outside of any, this user's among the temporary folders. It may not exist."""
    try:
        found = find_project()
    except FileNotFoundError:  # the current folder was removed
        found = None
    return Path(tempfile.gettempdir(), f"interpipe-{os.getuid()}") if found is None else found / ".interpipe"


def overlay() -> Path | None:
    """The project's own folder of configs; None: it has none, or is the checkout, which ships its own."""
    found = find_project()
    folder = None if found is None or found == CODE else found / OVERLAY
    return folder if folder is not None and folder.is_dir() else None


def link_code(folder: Path, project: Path) -> None:
    """Link to the code from a run folder or a project, where the stages' commands look for it.

    Arguments:
        folder: the run folder, or the project.
        project: its project. Links are relative where the code lies in it, so that it can be moved with its runs.

    Raises:
        InterpError: there is something else in the place of a link.
    """
    for name in LINKED:
        target = CODE / name
        near = CODE.is_relative_to(project)
        what = "the project" if folder == project else "run folder"
        set_link(folder / name, Path(os.path.relpath(target, folder)) if near else target, what)


def set_link(place: Path, target: Path, what: str = "run folder") -> None:
    """Link to a folder; what is there and is no link is never removed.

    Arguments:
        place: of the link.
        target: the folder.
        what: has the link, for messages.

    Raises:
        InterpError: it is no link.
    """
    if place.is_symlink():
        if Path(os.readlink(place)) == target:
            return
    elif place.exists():
        raise InterpError(f"expected no {place.name!r} of its own in {what} {place.parent}. Choose another folder.")
    staged = place.with_name(f".{place.name}.incoming")
    staged.unlink(missing_ok=True)  # of a process that was killed
    staged.symlink_to(target, target_is_directory=True)
    os.replace(staged, place)

"""Load code of the user's own: tasks, lenses, metrics and figures, which register themselves when imported.

    plugins: [my_lab.lenses, mine.py]     # in the config: modules, or files from where the user stands

An installed package names its module in the entry-point group `interpipe.plugins`. The list, with these added, is part
of the run's config: each stage's process imports what stands there, so a run folder says what it was made with.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from interp.errors import InterpError, nearest
from pipeline.files import digest_of, file_digest
from pipeline.project import find_project

__all__ = ["GROUP", "described", "load", "localized", "of_run", "resolve", "roots", "used"]

GROUP = "interpipe.plugins"
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
OURS = ("interp", "pipeline")
PRINTS_ALL = "report"  # its figures are named by no config, and its page says which code made the run


def localized(names: Any, standing: Path) -> list[str]:
    """The plugins of a config as they hold in every run folder, those of installed packages added.

    Arguments:
        names: the key `plugins`; it may still be wrong.
        standing: the folder in which the user stood.

    Returns:
        Modules as they are; a file by its path from the project where it lies in it, else by its absolute one.

    Raises:
        InterpError: it is no list of modules and files, or a file is not there.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InterpError(f"expected a list of modules and Python files, got {names!r}. Write e.g. [my_lab.lenses].")
    found = [_localized(name, standing) for name in names]
    installed = sorted(point.value.partition(":")[0] for point in metadata.entry_points(group=GROUP))
    return list(dict.fromkeys([*found, *installed]))


def _localized(name: str, standing: Path) -> str:
    if not name.endswith(".py"):
        if not MODULE.fullmatch(name) or name.partition(".")[0] in OURS:
            raise InterpError(f"expected a module of yours, as my_lab.lenses, or a file, as mine.py, got {name!r}.")
        return name
    project = find_project(standing)
    places = [standing, *([project] if project else [])]
    for place in (Path(os.path.abspath(folder / Path(name).expanduser())) for folder in places):
        if place.is_file():
            if not MODULE.fullmatch(place.stem):
                raise InterpError(f"expected a file that can be imported by its name, got {place.name!r}. Rename it.")
            near = project is not None and place.is_relative_to(project)
            return place.relative_to(project).as_posix() if near and project else str(place)
    beside = [file.name for file in (standing / name).parent.glob("*.py")]
    raise InterpError(f"expected a Python file at {standing / name}, found none.{nearest(Path(name).name, beside)}")


def load(names: Iterable[str]) -> list[ModuleType]:
    """Import plugins; each registers what it brings.

    Arguments:
        names: as `localized` gives them.

    Raises:
        InterpError: one cannot be imported.
    """
    return [_load(name) for name in names]


def of_run(params: str | Path = "params.yaml") -> list[str]:
    """The plugins of a run folder's `params.yaml`; none where there is no such file or key."""
    with contextlib.suppress(FileNotFoundError):
        values = yaml.load(Path(params).read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return list((values or {}).get("plugins") or [])
    return []


def _load(name: str) -> ModuleType:
    module, file, project = _module(name), _file(name), find_project() or Path.cwd()
    if str(project) not in sys.path:
        sys.path.append(str(project))  # last, so that no name there takes the place of a library's
    try:
        # With the colon, the module is imported and what is wrong inside it raised as it is.
        loaded = pkgutil.resolve_name(f"{module}:") if file is None else _load_file(module, file)
    except ModuleNotFoundError as error:
        if error.name and module != error.name and not module.startswith(f"{error.name}."):
            raise InterpError(f"{name} imports {error.name}, which is not installed.") from None
        beside = {path.stem for path in project.glob("*.py")} | {path.parent.name for path in project.glob("*/*.py")}
        raise InterpError(
            f"expected a module {name!r} in {project} or among what is installed, found none."
            f"{nearest(name, beside - {*OURS})}"
        ) from None
    except InterpError:
        raise
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise InterpError(f"{name} cannot be imported ({type(error).__name__}: {first}).") from error
    top = module.partition(".")[0]
    own = [place for place in (project / f"{top}.py", project / top / "__init__.py") if file is None and place.exists()]
    if own and not Path(str(loaded.__file__)).resolve().is_relative_to(project.resolve()):
        raise InterpError(f"{name}: expected {own[0]}, got {loaded.__file__}, which has the same name. Rename yours.")
    return loaded


def _load_file(module: str, file: Path) -> ModuleType:
    """Import a file as the module of its name.

    Raises:
        InterpError: there is another module of that name.
    """
    there = sys.modules.get(module)
    spec = there.__spec__ if there is not None else importlib.util.find_spec(module)
    if spec is not None and (spec.origin is None or not os.path.exists(spec.origin) or not file.samefile(spec.origin)):
        raise InterpError(f"{file}: there is another module {module!r} ({spec.origin}). Rename yours.")
    if there is not None:
        return there
    spec = importlib.util.spec_from_file_location(module, file)
    assert spec is not None and spec.loader is not None
    loaded = sys.modules[module] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[module]
        raise
    return loaded


def _file(name: str) -> Path | None:
    """The file of a plugin that is one; None: it is a module."""
    return (find_project() or Path.cwd()) / name if name.endswith(".py") else None


def _module(name: str) -> str:
    """The module that a plugin is imported as: a file is one of its own name."""
    return Path(name).stem if name.endswith(".py") else name


def resolve(reference: str) -> Any:
    """What `package.module:Name` names; imported when it is needed, so that a config is checked without torch.

    Raises:
        InterpError: there is no such thing.
    """
    try:
        return pkgutil.resolve_name(reference)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise InterpError(f"expected {reference!r} to name a class as package.module:Name, got: {error}.") from None


def roots(names: Iterable[str]) -> dict[str, Path]:
    """Where the plugins' code lies, for its fingerprint: top-level name -> folder of the package, or file.

    Arguments:
        names: as `localized` gives them; they are imported.
    """
    found = {}
    for module in load(names):
        top = module.__name__.partition(".")[0]
        package = sys.modules[top]
        found[top] = Path(package.__path__[0]) if hasattr(package, "__path__") else Path(str(package.__file__))
    return found


def used(names: Iterable[str], chosen: Mapping[str, Iterable[Any]]) -> dict[str, list[str]]:
    """The plugins' modules that each stage of a run uses: stage -> dotted names, sorted.

    Arguments:
        names: as `localized` gives them.
        chosen: stage -> the classes of the kinds that the config chooses for it, or the functions that it calls.

    A kind brings the modules of its class and of the implementation that it names, a function its own; stage `report`
    uses all plugins.
    """
    names = list(names)
    ours = set(roots(names))
    found: dict[str, set[str]] = {PRINTS_ALL: {_module(name) for name in names}} if names else {}
    for stage, kinds in chosen.items():
        for kind in kinds:
            modules = {base.__module__ for base in getattr(kind, "__mro__", [kind])}
            modules.add(str(getattr(kind, "stage", "")).partition(":")[0])
            theirs = {module for module in modules if module.partition(".")[0] in ours}
            if theirs:
                found.setdefault(stage, set()).update(theirs)
    return {stage: sorted(modules) for stage, modules in found.items()}


def described(names: Iterable[str]) -> dict[str, str]:
    """What a run's record says of its plugins: name -> digest of the code of its package or file.

    Arguments:
        names: as `localized` gives them.
    """
    names = list(names)
    places = roots(names)
    return {name: _digest(places[_module(name).partition(".")[0]]) for name in names}


def _digest(place: Path) -> str:
    """SHA-256 over the Python files of a package's folder, or of one file."""
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return digest_of([[file.relative_to(place.parent).as_posix(), file_digest(file)] for file in files])

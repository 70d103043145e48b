"""Prepare a process: are its libraries installed, have they a home, and do interrupts leave no traceback.

Batch systems and containers run programs without a home, with one that can only be read, or as a user that the system
does not know. Libraries then complain, write into the working directory, or stop. What the user has set stays as it is.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import signal
import sys
import threading
from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

__all__ = ["NEEDED", "missing_libraries", "provide_home", "quiet_interrupts", "stop_unless_installed"]

NEEDED = {  # what the extra `pipeline` of pyproject.toml installs -> the name that it is imported by
    "configobj": "configobj",
    "dvc": "dvc",
    "filelock": "filelock",
    "hydra-core": "hydra",
    "hydra-joblib-launcher": "hydra_plugins.hydra_joblib_launcher",
    "matplotlib": "matplotlib",
    "mlflow": "mlflow",
    "omegaconf": "omegaconf",
    "psutil": "psutil",
    "pyarrow": "pyarrow",
    "ruamel.yaml": "ruamel.yaml",
    "zarr": "zarr",
}


def missing_libraries() -> str:
    """What to tell a user who lacks libraries of the workflow; empty: none is missing. Nothing is imported for it."""
    missing = [name for name, module in NEEDED.items() if not _is_there(module)]
    if not missing:
        return ""
    return (
        f"the workflow needs {', '.join(missing)}, which the library alone comes without. "
        "Install them: pip install 'interpipe[pipeline]'"
    )


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package above it is not there
        return False


def stop_unless_installed() -> None:
    """Stop a command that cannot run, with one sentence and exit status 2."""
    if missing := missing_libraries():
        print(f"error: {missing}", file=sys.stderr)
        raise SystemExit(2)


def provide_home(environment: MutableMapping[str, str], own: Path) -> None:
    """Name folders of ours to the libraries that this process and its children load, where the user's are of no use.

    Arguments:
        environment: of the process; names are added.
        own: the folder for it; it is made only where something is needed.
    """
    _name_user(environment)
    home = environment.get("HOME") or _home()
    if home is None or not os.path.isdir(home):
        environment["HOME"] = _made(own)  # `~` would become a folder of that name in the working directory
        home = str(own)
    cache = environment.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    config = environment.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    if not _writable(cache):
        hub = os.path.join(cache, "huggingface")
        if "HF_HOME" not in environment and os.path.isdir(hub):  # models that are there can be read all the same
            environment.setdefault("HF_HUB_CACHE", os.path.join(hub, "hub"))
            environment.setdefault("HF_TOKEN_PATH", os.path.join(hub, "token"))
        cache = environment["XDG_CACHE_HOME"] = _made(own / ".cache")
    if not _writable(config):
        environment.setdefault("MPLCONFIGDIR", _made(own / ".cache" / "matplotlib"))
    if not _writable(environment.get("HF_HOME") or cache):  # a shared one, of models that somebody else has fetched
        for name in ("datasets", "modules", "xet", "assets"):
            environment.setdefault(f"HF_{name.upper()}_CACHE", _made(own / ".cache" / "huggingface" / name))
    if not _writable("/var/tmp/dvc"):
        environment.setdefault("DVC_SITE_CACHE_DIR", _made(own / ".cache" / "dvc"))


def _name_user(environment: MutableMapping[str, str]) -> None:
    """Give a user whom the system does not know a name: DVC and torch ask for one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        environment["USER"] = f"user{os.getuid()}"


def _home() -> str | None:
    """The home that the system knows of this user."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None


def _writable(folder: str) -> bool:
    """Whether a folder can be written to, or be made; nothing is made for it."""
    place = Path(folder).absolute()
    there = next((above for above in (place, *place.parents) if os.path.lexists(above)), place)
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _made(folder: Path) -> str:
    """A folder, made where it can be."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def quiet_interrupts() -> None:
    """Let SIGINT raise `KeyboardInterrupt`, as Python does, and report no failing finalizer from then on.

    An object that the interrupt left half made (a progress bar, say) complains as it goes, with a traceback that
    says nothing. For processes that end after an interrupt. A signal that is ignored stays ignored, so that `nohup`
    works; only a process's main thread may ask for signals, another one changes nothing.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        sys.unraisablehook = lambda unraisable: None
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)

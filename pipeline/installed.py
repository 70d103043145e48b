"""Are the workflow's libraries installed? `interp` comes without them: `pip install interpipe` is the library alone.

A file of its own, which imports no more than an error: every command passes it before it imports anything else.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from interp.errors import InterpError

__all__ = ["check_installed", "stop_unless_installed"]

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
    "pyyaml": "yaml",
    "ruamel.yaml": "ruamel.yaml",
    "zarr": "zarr",
}


def check_installed() -> None:
    """Check that the libraries of the workflow are there; none is imported.

    Raises:
        InterpError: some are not.
    """
    missing = [name for name, module in NEEDED.items() if not _is_there(module)]
    if missing:
        raise InterpError(
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
    try:
        check_installed()
    except InterpError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None

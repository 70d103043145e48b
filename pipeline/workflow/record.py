"""What `run.json` says of the world that a run ran in: git, versions, the outputs' hashes."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import interp

__all__ = ["git_state", "now", "outputs", "versions"]

LIBRARIES = (
    "torch", "transformers", "tokenizers", "nnsight", "accelerate", "datasets", "numpy", "zarr",
    "pyarrow", "hydra-core", "omegaconf", "dvc", "mlflow",
)  # fmt: skip


def now() -> str:
    """This moment, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def versions() -> dict[str, str]:
    """Versions of Python, of this project and of the libraries that results depend on; nothing is imported for it."""
    found = {"python": platform.python_version(), "interpipe": interp.__version__}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue  # an optional one
    return found


def git_state(root: Path) -> dict[str, Any]:
    """The state of the code: `commit`, `branch` (null: none or detached) and `dirty`; all null outside git.

    Arguments:
        root: the repository's folder.
    """

    def git(*arguments: str) -> str | None:
        try:
            ran = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
        except OSError:  # no git on this machine
            return None
        return ran.stdout.strip() if ran.returncode == 0 else None

    changes = git("status", "--porcelain")
    return {
        "commit": git("rev-parse", "--verify", "--quiet", "HEAD"),
        "branch": git("symbolic-ref", "--short", "--quiet", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def outputs(folder: Path, stages: Iterable[str]) -> dict[str, str]:
    """Content hashes of what stages made, by artifact, as DVC has them in `dvc.lock`.

    Arguments:
        folder: the run folder.
        stages: the stages that are done.
    """
    lock = folder / "dvc.lock"
    if not lock.is_file():
        return {}
    locked = yaml.load(lock.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"]
    return {out["path"]: out["md5"] for stage in stages for out in locked.get(stage, {}).get("outs", [])}

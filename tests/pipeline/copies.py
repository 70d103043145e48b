"""Copies of our code, for tests that run it in processes whose cache, locks and tracking are their own."""

from __future__ import annotations

import shutil
from pathlib import Path


def copy_code(package: Path, target: Path) -> None:
    """Copy a package with what Python has compiled of it, so that no process compiles it again.

    Arguments:
        package: its folder.
        target: the folder that it is to be; it must not exist.
    """
    shutil.copytree(package, target, ignore=shutil.ignore_patterns("*.pyc.*"))  # which another process is just writing

"""The example projects, run as their users run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.project import CODE


def run(home: Path, *arguments: str, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline ARGUMENTS` in a project.

    Arguments:
        home: the project.
        arguments: of the command.
        packages: a folder with packages that are installed besides.
    """
    path = os.pathsep.join(str(folder) for folder in (CODE, packages) if folder)
    command = [sys.executable, "-m", "pipeline", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)


def record(folder: Path) -> dict[str, Any]:
    """What a run says of itself."""
    values: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return values


def edit(file: Path, before: str, after: str) -> None:
    """Write something else in place of the first such text of a file."""
    text = file.read_text(encoding="utf-8")
    assert before in text
    file.write_text(text.replace(before, after, 1), encoding="utf-8")

"""The commands where only the library is installed: one sentence that says what to install."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline.process import NEEDED, missing_libraries
from pipeline.project import CODE

# Python imports `sitecustomize` first of all. What is named in BLOCKED cannot be found after that.
BLOCKER = """
import os, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in os.environ["BLOCKED"].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""
COMMAND = ("-c", "import sys; from pipeline.cli import main; sys.exit(main())")  # as an installer writes `interpipe`


def run(folder: Path, blocked: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with some libraries not installed."""
    (folder / "sitecustomize.py").write_text(BLOCKER)
    environment = {**os.environ, "BLOCKED": blocked, "PYTHONPATH": os.pathsep.join([str(folder), str(CODE)])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [("-m", "pipeline"), ("-m", "pipeline.store", "info"), ("-m", "pipeline.workflow", "resume"), (*COMMAND, "run")],
)
def test_what_is_missing_is_one_sentence(command: tuple[str, ...], tmp_path: Path) -> None:
    ran = run(tmp_path, "dvc hydra", *command)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "error: the workflow needs dvc, hydra-core, which the library alone comes without. "
        "Install them: pip install 'interpipe[pipeline]'\n"
    )


def test_what_needs_no_workflow_works_without_it(tmp_path: Path) -> None:
    everything = " ".join(NEEDED.values())
    assert "interpipe new FOLDER" in run(tmp_path, everything, *COMMAND, "--help").stdout
    assert run(tmp_path, everything, *COMMAND, "new", "mine").returncode == 0
    assert (tmp_path / "mine/interpipe.toml").is_file()


def test_the_extra_is_what_is_asked_for() -> None:
    assert missing_libraries() == ""
    extras = tomllib.loads((CODE / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert list(NEEDED) == [requirement.partition(">")[0] for requirement in extras["pipeline"]]

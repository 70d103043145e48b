"""A home for libraries where the user has none, or may only read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import process
from pipeline.process import provide_home
from pipeline.project import CODE

# As an entry of the pipeline does it, with another folder for ours.
ASKED = """
import json, os, sys
from pathlib import Path
from pipeline.process import provide_home
os.environ["HOME"] = sys.argv[1]
provide_home(os.environ, Path(sys.argv[2]))
import matplotlib
from huggingface_hub import constants
print(json.dumps([os.path.expanduser("~"), matplotlib.get_configdir(), matplotlib.get_cachedir(), constants.HF_HOME]))
"""


def test_a_user_with_a_home_is_left_alone(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "DVC_SITE_CACHE_DIR": "/x"}
    provide_home(environment, tmp_path / "own")
    assert environment == {"HOME": str(tmp_path), "DVC_SITE_CACHE_DIR": "/x"}
    assert list(tmp_path.iterdir()) == [], "nothing is made for a question"


@pytest.mark.parametrize("missing", ["/nonexistent/home", "/dev/null"])
def test_without_a_home_libraries_come_to_ours(missing: str, tmp_path: Path) -> None:
    """As the libraries themselves say it, without a word of complaint."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HF_", "MPL"))}
    own = str(tmp_path / "own")
    ran = subprocess.run(
        [sys.executable, "-c", ASKED, missing, own], cwd=CODE, env=clean, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    assert all(place.startswith(own) for place in json.loads(ran.stdout)), ran.stdout


def test_a_home_that_can_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, own = tmp_path / "home", tmp_path / "own"
    (home / ".cache/huggingface/hub").mkdir(parents=True)
    really = os.access
    monkeypatch.setattr(
        process.os, "access", lambda path, mode: not Path(path).is_relative_to(home) and really(path, mode)
    )
    environment = {"HOME": str(home)}
    provide_home(environment, own)
    assert environment["HOME"] == str(home), "keys and settings of the user are there to be read"
    assert environment["HF_HUB_CACHE"] == str(home / ".cache/huggingface/hub"), "and so are models"
    assert environment["XDG_CACHE_HOME"] == str(own / ".cache")
    assert environment["MPLCONFIGDIR"] == str(own / ".cache/matplotlib") and Path(environment["MPLCONFIGDIR"]).is_dir()
    # What the user has set stays, also a shared HF_HOME, beside which data sets come to ours.
    environment = {"HOME": str(tmp_path), "HF_HOME": str(home / "shared"), "DVC_SITE_CACHE_DIR": "/x"}
    provide_home(environment, own)
    assert environment["HF_HOME"] == str(home / "shared")
    assert environment["HF_DATASETS_CACHE"] == str(own / ".cache/huggingface/datasets")
    assert environment["DVC_SITE_CACHE_DIR"] == "/x"


def test_a_user_whom_the_system_does_not_know_gets_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(process.getpass, "getuser", unknown)
    monkeypatch.setattr(process.pwd, "getpwuid", unknown)
    environment: dict[str, str] = {}
    provide_home(environment, tmp_path / "own")
    assert environment["USER"] == f"user{os.getuid()}" and environment["HOME"] == str(tmp_path / "own")

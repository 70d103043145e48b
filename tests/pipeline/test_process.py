"""What a process of the workflow is given before anything is loaded: one sentence where libraries are missing, a home
for libraries where the user has none, silence of half-made objects after an interrupt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline import process
from pipeline.process import NEEDED, missing_libraries, provide_home
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


CHILD = """
import os, signal, sys
from pipeline.process import quiet_interrupts

class Bar:
    def __del__(self):
        self.postfix["info"] = ""

# Not as it was inherited: what a shell runs in the background ignores SIGINT.
signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[1] == "ignored" else signal.default_int_handler)
quiet_interrupts()
if sys.argv[1] == "before":
    Bar()
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("went on")
except KeyboardInterrupt:
    print("interrupted")
Bar()
"""


@pytest.mark.parametrize(
    "case, said, tracebacks", [("plain", "interrupted", 0), ("before", "interrupted", 1), ("ignored", "went on", 1)]
)
def test_finalizers_are_heard_until_an_interrupt_comes(case: str, said: str, tracebacks: int) -> None:
    run = subprocess.run([sys.executable, "-c", CHILD, case], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == said
    assert run.stderr.count("has no attribute 'postfix'") == tracebacks

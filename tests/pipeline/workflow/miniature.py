"""A miniature repository: this one's workflow, and two stages that take no time and do as they are told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.pipeline.copies import copy_code

REPOSITORY = Path(__file__).resolve().parents[3]
COPIED = (
    "interp/__init__.py", "interp/errors.py", "pipeline/__init__.py", "pipeline/files.py", "pipeline/process.py",
    "pipeline/object_cache.py", "pipeline/plugins.py", "pipeline/project.py",
    "pipeline/stages/__init__.py", "pipeline/stages/code.py", "pipeline/stages/common.py",
    "pipeline/tables/__init__.py", "pipeline/tables/table.py",
)  # fmt: skip
WHOLE = ("pipeline/config", "pipeline/fingerprints", "pipeline/workflow")

# `first` notes in ran.txt that it runs, waits for a file where it is told to, fails where it is told to.
FIRST = """
import os, signal, time
from pathlib import Path
from interp.errors import InterpError
from pipeline.config.section import load_section
from pipeline.stages.common import stage_main
from pipeline.project import project_root

def run():
    config = load_section("first")
    with (project_root() / "ran.txt").open("a") as ran:
        ran.write(f"first {os.getpid()}\\n")
    print("to standard output")
    while config["gate"] and not (project_root() / config["gate"]).exists():
        time.sleep(0.01)
    if config["fault"] == "message":
        raise InterpError("expected more,\\ngot less")
    if config["fault"] == "crash":
        raise RuntimeError("a fault of the program")
    if config["fault"] == "memory":
        os.kill(os.getpid(), signal.SIGKILL)
    Path("first.txt").write_text(f"{config['value']}\\n")
    return {"rows": 3.0}

if __name__ == "__main__":
    stage_main("first", run)
"""
SECOND = """
from pathlib import Path
from pipeline.config.section import load_section
from pipeline.stages.common import stage_main
from pipeline.project import project_root

def run():
    with (project_root() / "ran.txt").open("a") as ran:
        ran.write("second\\n")
    Path("second").mkdir()
    Path("second/text.txt").write_text(Path("first.txt").read_text() + load_section("second")["title"])

if __name__ == "__main__":
    stage_main("second", run)
"""
STAGES = """
stages:
  code:
    cmd: python -m pipeline.stages.code
    always_changed: true
    deps: [interp, pipeline]
    outs:
      - code:
          cache: false
      - versions.json:
          cache: false
  first:
    cmd: python -m pipeline.stages.first
    deps: ["${first.depends_on}"]
    params:
      - first
      - code/first.json:
      - versions.json: [first]
    outs: [first.txt, versions/first.json]
    meta: {libraries: [torch, zarr]}
  second:
    cmd: python -m pipeline.stages.second
    deps: [first.txt]
    params:
      - second
      - code/second.json:
      - versions.json: [second]
    outs: [second, versions/second.json]
    meta: {libraries: [numpy]}
"""
DRIVER = """
import json, logging, sys
from interp.errors import InterpError
from pipeline.workflow import resume, run_job

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
asked = json.loads(sys.argv[1])
try:
    if asked["params"] is None:
        resume(asked["folder"])
    else:
        run_job(asked["params"], asked["folder"], overrides=["a=b"], sweep={"name": "s", "swept": {"a": "b"}})
except InterpError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
except KeyboardInterrupt:
    sys.exit(130)
"""


def build(root: Path) -> Path:
    """Make the miniature repository in an empty folder; returns the folder."""
    for name in WHOLE:
        copy_code(REPOSITORY / name, root / name)
    for name in (
        *COPIED,
        ".dvcignore",
        ".dvc/config",
        ".dvc/.gitignore",
        ".gitignore",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, root / name)
    (root / "pipeline/stages/first.py").write_text(FIRST)
    (root / "pipeline/stages/second.py").write_text(SECOND)
    (root / "pipeline/data.txt").write_text("data")
    (root / "dvc.yaml").write_text(STAGES)
    (root / "unused").mkdir()
    for library in ("torch", "zarr"):  # a warm process would import the real ones, which no stage here uses
        (root / "unused" / f"{library}.py").write_text("")
    (root / "drive.py").write_text(DRIVER)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    return root


def params(
    value: int = 1, title: str = "title", gate: str | None = None, fault: str | None = None, versions: str = "recompute"
) -> dict[str, Any]:
    """A config of the miniature repository."""
    return {
        "first": {"value": value, "gate": gate, "fault": fault, "depends_on": "pipeline/data.txt"},
        "second": {"title": title},
        "cache": {"versions": versions},
        "tracking": {"enabled": False},
    }


def hear_signals() -> None:
    """Undo what nohup or a background shell did to the tests: a run leaves a signal alone that is ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(
    root: Path, folder: str, values: dict[str, Any] | None, environment: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Start a run of the miniature repository, in a process group of its own; `values` None: resume it."""
    return subprocess.Popen(
        [sys.executable, "drive.py", json.dumps({"folder": folder, "params": values})],
        cwd=root,
        env={
            **os.environ,
            "DVC_SITE_CACHE_DIR": str(root / ".site"),
            "PYTHONPATH": os.pathsep.join([str(root / "unused"), os.environ.get("PYTHONPATH", "")]),
            **(environment or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_signals,
        **options,
    )


def run(root: Path, folder: str, values: dict[str, Any] | None, **environment: str) -> tuple[int, str]:
    """Run to the end, with some variables changed; returns (exit status, standard error)."""
    process = start(root, folder, values, environment)
    output, errors = process.communicate(timeout=60)
    assert output == ""
    return process.returncode, errors


def record(root: Path, folder: str) -> dict[str, Any]:
    """The run's `run.json`."""
    return json.loads((root / folder / "run.json").read_text(encoding="utf-8"))


def ran(root: Path) -> list[str]:
    """The stages that have run, in order."""
    file = root / "ran.txt"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

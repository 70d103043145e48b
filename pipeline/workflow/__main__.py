"""Tend runs and the workflow's own files.

python -m pipeline.workflow resume FOLDER      # go on with a run that failed or was killed
python -m pipeline.workflow params [--write]   # params.yaml of the root, as conf/ composes it
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

from interp.errors import InterpError
from pipeline.config.model import ModelConfig
from pipeline.config.paths import check_path
from pipeline.config.section import section_from
from pipeline.config.tracking import TrackingConfig
from pipeline.files import write_text
from pipeline.project import CODE
from pipeline.validate.model_source import check_machine
from pipeline.workflow.run import resume
from pipeline.workflow.run_folder import read_params

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    Arguments:
        arguments: the command line; None: the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.workflow", description="Tend runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    again = commands.add_parser("resume", help="go on with a run that failed or was killed")
    again.add_argument("folder", type=Path, help="its run folder")
    command = commands.add_parser("params", help="check the root's params.yaml; status 1 where it is out of date")
    command.add_argument("--write", action="store_true", help="bring it up to date")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if chosen.command == "resume":
            return _resume(chosen.folder)
        return _params(chosen.write)
    except InterpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted. What is finished is kept: the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED


def _resume(folder: Path) -> int:
    """Go on with a run; tracking gets it as it gets every run, also one that fails again.

    Raises:
        InterpError: as `resume`, and for a folder that holds no run.
    """
    check_path("FOLDER", folder)
    params = read_params(folder)
    tracking = section_from(TrackingConfig, params["tracking"], "tracking")
    if "model" in params:  # it may go on on another machine
        check_machine(section_from(ModelConfig, params["model"], "model"))
    try:
        resume(folder)
    finally:
        if tracking.enabled:
            # A process of its own: the workflow knows no tracking.
            subprocess.run([sys.executable, "-m", "pipeline.tracking", "sync", str(folder)], check=False)
    return 0


def default_params() -> str:
    """The text of `params.yaml` as `dvc exp run` writes it: by DVC's own function, so that the two cannot part."""
    from dvc.utils.hydra import compose_and_dump

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        compose_and_dump(str(path), str(CODE / "conf"), None, "config", str(CODE), [])
        return path.read_text(encoding="utf-8")


def _params(write: bool) -> int:
    path, text = CODE / "params.yaml", default_params()
    if write:
        write_text(path, text)
    same = path.is_file() and path.read_text(encoding="utf-8") == text
    print(
        "params.yaml is what conf/ composes"
        if same
        else "params.yaml is not what conf/ composes; mend it with: python -m pipeline.workflow params --write"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

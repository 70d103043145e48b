"""Run the command `interpipe`: make a project of your own, and run experiments in it or in a checkout.

    interpipe new FOLDER           # a project: its own runs, cache, MLflow database and choices of configs
    interpipe run [overrides]      # python -m pipeline
    interpipe resume FOLDER        # python -m pipeline.workflow resume
    interpipe ui | sync FOLDER     # python -m pipeline.tracking ...
    interpipe store ...            # python -m pipeline.store

The library `interp` is installed without Hydra, DVC and MLflow; where these are missing the commands say so.
"""

from __future__ import annotations

import os
import runpy
import shlex
import sys
from pathlib import Path

from interp.errors import InterpError
from pipeline.files import write_text
from pipeline.process import missing_libraries
from pipeline.project import CODE, MARKER, OVERLAY, link_code, shipped

__all__ = ["main", "make_project"]

COMMANDS = {  # command -> module, and the arguments that go before the user's
    "run": ("pipeline", ()),
    "resume": ("pipeline.workflow", ("resume",)),
    "ui": ("pipeline.tracking", ("ui",)),
    "sync": ("pipeline.tracking", ("sync",)),
    "store": ("pipeline.store", ()),
}
REJECTED = 2

MARKED = """\
# This folder is an Interpipe project: runs that are started in it, or below it, share the cache and the MLflow database
# that are here.
"""
IGNORED = """\
# what can be computed again
/outputs/
/.interpipe/
/mlflow.db*
/.mlflow.db.incoming
/mlartifacts/
__pycache__/
# links to the installed code, and what `dvc repro` makes here
/interp
/pipeline
/.dvc/cache
/.dvc/tmp
/.dvc/config.local
/activations.zarr
/code/
/curves.csv
/curves.parquet
/grids.csv
/grids.parquet
/lens.zarr
/metrics.json
/report/
/timings/
/tokens/
/tuned_lens
/versions.json
/versions/
"""
DVC_CONFIG = """\
[core]
    analytics = false
    check_update = false
    no_scm = {no_scm}
[cache]
    type = "reflink,hardlink,symlink,copy"
"""
README = """\
# {name}

Experiments with Interpipe. Commands work anywhere in this folder; `outputs/` is where you stand.

```
interpipe run                                    # the embedded model and words; results in outputs/
interpipe run lens=logit_lens model=gpt2         # the same as: python -m pipeline lens=logit_lens model=gpt2
interpipe run -m lens=logit_lens,patchscope      # a sweep
interpipe run --help                             # stages, groups and their choices
interpipe resume outputs/DATE/TIME               # go on with a run that was interrupted
interpipe ui                                     # MLflow's page, to compare runs
cd outputs/DATE/TIME && dvc status               # a run folder is a DVC project; so is this folder: dvc repro
```

| here | what |
|---|---|
| `conf/` | choices of your own: `conf/model/mine.yaml` is `model=mine` |
| `outputs/`, `.dvc/cache`, `mlflow.db` | run folders, what they share, and their record; git leaves them out |
| `params.yaml`, `dvc.yaml` | what `dvc repro` runs here: the default experiment; change `params.yaml` as you like |

A task, a lens, a metric or a figure of your own is a Python file or package here, named in the config:
`interpipe run 'plugins=[my_lenses]'`.

After an upgrade of Interpipe, or on another machine, `interpipe new .` mends the links and `dvc.yaml`; all that is
yours stays.
"""
EXPERIMENT = """\
# @package _global_
# `experiment=first` is what it changes of the defaults. `interpipe run --cfg job` shows all there is to change.
task:
  target_language: es
report:
  title: My first experiment
"""


def make_project(folder: Path) -> Path:
    """Make a project, or bring up to date what of a project is this version's: `dvc.yaml`, `.dvcignore`, the links.

    Arguments:
        folder: its place; it may exist, and what the user keeps there stays.

    Returns:
        The folder, absolute.

    Raises:
        InterpError: there can be no project there.
    """
    folder = Path(os.path.abspath(folder.expanduser()))
    if folder == CODE or folder.is_relative_to(CODE / "pipeline") or folder.is_relative_to(CODE / "interp"):
        raise InterpError(
            f"expected a folder of your own, got {folder}, where Interpipe's code lies. Choose another one."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        link_code(folder, folder)
        for name in ("dvc.yaml", ".dvcignore"):
            write_text(folder / name, shipped(name).read_text(encoding="utf-8"))
        in_git = any((above / ".git").exists() for above in (folder, *folder.parents))
        for name, text in {
            ".gitignore": IGNORED,
            ".dvc/config": DVC_CONFIG.format(no_scm=str(not in_git).lower()),
            "params.yaml": shipped("params.yaml").read_text(encoding="utf-8"),
            "README.md": README.format(name=folder.name),
            **({} if (folder / OVERLAY).exists() else {f"{OVERLAY}/experiment/first.yaml": EXPERIMENT}),
            MARKER: MARKED,  # last: half a project is none
        }.items():
            if not os.path.lexists(folder / name):
                write_text(folder / name, text)
    except OSError as error:
        raise InterpError(
            f"expected a folder that can be made and written to, got {folder} ({error.strerror or error}). "
            "Choose another one."
        ) from None
    return folder


def main() -> int:
    """Run one command; returns the exit status."""
    command, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    try:
        if command in ("--help", "-h", "help"):
            print(__doc__.strip())
            return 0
        if command == "new":
            return _new(arguments)
        if command not in COMMANDS:
            known = ["new", *COMMANDS]
            raise InterpError(f"unknown command {command!r}, expected one of {', '.join(known)}.")
        module, first = COMMANDS[command]
        return _run(module, [*first, *arguments])
    except InterpError as error:
        print(f"error: {error}", file=sys.stderr)
        return REJECTED


def _new(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise InterpError(f"expected one folder, got {shlex.join(arguments) or 'nothing'}. Write: interpipe new FOLDER")
    folder = make_project(Path(arguments[0]))
    print(f"{folder} is a project. Go on with\n    cd {shlex.quote(str(folder))} && interpipe run")
    return 0


def _run(module: str, arguments: list[str]) -> int:
    """Run a module as `python -m MODULE ARGUMENTS` does, in this process.

    Raises:
        InterpError: a library of the workflow is not installed.
    """
    if missing := missing_libraries():
        raise InterpError(missing)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0

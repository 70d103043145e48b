"""One job, and a sweep of jobs: between Hydra, which composes and launches, and the workflow, which runs the stages.

Hydra calls `Preflight` in the parent before anything starts, and `job` once a job, for a sweep perhaps in other
processes or on other machines. What jobs have to know of their sweep lies in `sweep.json` in its folder; what the
parent has to know of its jobs lies in their `run.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from interp.errors import InterpError
from pipeline.config.base import ConfigError
from pipeline.config.explain import explain
from pipeline.config.paths import localize
from pipeline.config.tracking import TrackingConfig
from pipeline.config.validate import Config, plain, validate
from pipeline.stages.common import write_json
from pipeline.summary import summary_lines

REJECTED = 2  # exit status for a config that cannot be run
FAILED = 1


def complain(message: str) -> None:
    """Write one message to standard error."""
    print(f"error: {message}", file=sys.stderr)


def checked(config: DictConfig, standing: Path) -> tuple[dict[str, Any], Config]:
    """A composed config as plain localized values, and typed.

    Arguments:
        config: what Hydra composed, with or without its `hydra` node.
        standing: the folder in which the user stood.

    Raises:
        ConfigError: it cannot be run.
    """
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    values = localize(plain(own), standing)
    return values, validate(values)


def job(config: DictConfig) -> None:
    """Run one composed config in its run folder; called by Hydra.

    Arguments:
        config: the config, without the `hydra` node.

    Raises:
        SystemExit: a single run failed. A job of a sweep only says so, and the others go on.
    """
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    sweep = None
    if settings.mode == RunMode.MULTIRUN:
        sweep = _part_of_sweep(Path(settings.sweep.dir), list(settings.overrides.task))
    message = _run(config, folder, list(settings.overrides.task), sweep, Path(settings.runtime.cwd))
    if message is None:
        print("\n".join(summary_lines(folder)))
        return
    complain(message if _short(folder) in message else f"{message}\nrun folder: {_short(folder)}")
    if sweep is None:
        raise SystemExit(FAILED)


def _run(
    config: DictConfig, folder: Path, overrides: list[str], sweep: dict[str, Any] | None, standing: Path
) -> str | None:
    """Run the stages and log the run; returns what went wrong, if anything did."""
    from pipeline.tracking.client import prepare
    from pipeline.tracking.runs import log_run
    from pipeline.workflow import run_job

    try:
        values, typed = checked(config, standing)
        if sweep is None:
            prepare(typed.tracking)
    except InterpError as error:
        return str(error)
    try:
        run_job(values, folder, overrides=overrides, sweep=sweep)
        return None
    except InterpError as error:
        return str(error)
    except Exception:  # a fault of this program: the other jobs of a sweep go on, and the report names it
        return traceback.format_exc()
    finally:  # also a failed and an interrupted run
        if (folder / "run.json").is_file():
            log_run(folder)


def _part_of_sweep(sweep_folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """What a job says of the sweep that it belongs to: its name, and the overrides that are this job's own."""
    file = sweep_folder / "sweep.json"
    described = {"name": str(sweep_folder), "fixed": []}
    with contextlib.suppress(OSError, ValueError):  # without it, or with half of it, the job itself goes on
        described |= json.loads(file.read_text(encoding="utf-8"))
    own = [override.lstrip("+") for override in overrides if override not in described["fixed"]]
    return {"name": described["name"], "swept": dict(override.split("=", 1) for override in own if "=" in override)}


@dataclass
class Sweep:
    """A sweep that has begun.

    Arguments:
        folder: the folder that holds one run folder a job.
        name: its name in tracking.
        jobs: each job's overrides; empty where the sweeper chooses them as it goes.
        tracking: each tracking that its jobs use, once.
    """

    folder: Path
    name: str
    jobs: list[list[str]]
    tracking: list[TrackingConfig]

    def end(self, status: str) -> None:
        """Close the sweep in tracking: `FINISHED`, `FAILED` or `KILLED`."""
        from pipeline.tracking.runs import end_sweep, log_run
        from pipeline.workflow import settle

        for number in range(len(self.jobs)):  # an interrupted launcher kills its workers, who then say nothing
            folder = self.folder / str(number)
            if settle(folder):
                log_run(folder)
        for config in self.tracking:
            end_sweep(config, self.name, status)

    def failures(self) -> list[tuple[str, Path]]:
        """(overrides, run folder) of each job that did not finish, from the jobs' `run.json`."""
        failed = []
        for number, overrides in enumerate(self.jobs):
            folder = self.folder / str(number)
            run = folder / "run.json"
            status = "FAILED"
            with contextlib.suppress(OSError, ValueError, KeyError):
                status = json.loads(run.read_text(encoding="utf-8"))["status"]
            if status != "FINISHED":
                failed.append((" ".join(overrides), folder))
        return failed


begun: Sweep | None = None  # this process's sweep, for an interrupt to close


class Preflight(Callback):
    """Rejects bad configs and makes ready, in the parent, before Hydra starts anything (`hydra.callbacks`)."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check a single run's config and give the run a folder of its own."""
        try:
            checked(config, Path.cwd())
        except ConfigError as error:
            complain(str(error))
            raise SystemExit(REJECTED) from None
        own_folder(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check every job's config, give the sweep a folder of its own, and make tracking ready."""
        global begun
        jobs, fixed = _expand(config)
        tracking = _check_jobs(config, jobs)
        folder = own_folder(config, "sweep")
        name = folder.relative_to(Path.cwd()).as_posix() if folder.is_relative_to(Path.cwd()) else str(folder)
        described = {"name": name, "overrides": list(config.hydra.overrides.task), "fixed": fixed, "jobs": jobs}
        write_json(folder / "sweep.json", described)

        from pipeline.tracking.client import prepare
        from pipeline.tracking.runs import begin_sweep

        begun = Sweep(folder, name, jobs, [section for section in tracking if prepare(section)])
        for section in begun.tracking:
            begin_sweep(section, name, list(config.hydra.overrides.task))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Close the sweep and say which jobs failed.

        Raises:
            SystemExit: some did.
        """
        global begun
        assert begun is not None
        sweep, begun = begun, None
        failed = sweep.failures()
        sweep.end("FAILED" if failed else "FINISHED")
        print(f"sweep  {_short(sweep.folder)}: {len(sweep.jobs) - len(failed)} of {len(sweep.jobs)} jobs finished")
        if failed:
            lines = [f"  {overrides or '(no overrides)'}: {_short(folder)}" for overrides, folder in failed]
            complain("\n".join([f"{len(failed)} of {len(sweep.jobs)} jobs failed:", *lines]))
            raise SystemExit(FAILED)


def _expand(config: DictConfig) -> tuple[list[list[str]], list[str]]:
    """A sweep's jobs, each a list of overrides, and the overrides that all of them share.

    Sweepers that choose as they go (Optuna) have no jobs yet: each of theirs is checked when it starts.
    """
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    basic = config.hydra.sweeper.get("_target_", "").endswith("BasicSweeper")
    swept = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()] if basic else []
    parsed = parser.parse_overrides([*swept, *config.hydra.overrides.task])
    fixed = [
        f"{override.get_key_element()}={override.get_value_element_as_str()}"
        for override in parsed
        if not override.is_sweep_override()
    ]
    return (BasicSweeper.split_arguments(parsed, None)[0] if basic else []), fixed


def _check_jobs(config: DictConfig, jobs: list[list[str]]) -> list[TrackingConfig]:
    """Check every job of a sweep; returns the trackings that they use.

    Raises:
        SystemExit: some job cannot be run; each different reason is told once.
    """
    loader = GlobalHydra.instance().config_loader()
    reasons: dict[str, list[str]] = {}
    tracking: list[TrackingConfig] = []
    for overrides in jobs:
        try:
            section = checked(loader.load_sweep_config(config, overrides), Path.cwd())[1].tracking
            if section not in tracking:
                tracking.append(section)
        except ConfigError as error:
            reasons.setdefault(str(error), []).append(" ".join(overrides))
        except (HydraException, ValueError) as error:
            reasons.setdefault(explain(error, overrides), []).append(" ".join(overrides))
    if not reasons:
        return tracking
    bad = sum(map(len, reasons.values()))
    lines = [
        f"  {which[0]}{f' and {len(which) - 1} more' if which[1:] else ''}: {why}" for why, which in reasons.items()
    ]
    if len(jobs) == 1:
        complain(next(iter(reasons)))
    else:
        complain("\n".join([f"{bad} of {len(jobs)} jobs cannot be run, so none was started:", *lines]))
    raise SystemExit(REJECTED)


def own_folder(config: DictConfig, kind: str) -> Path:
    """Make the folder of a run or a sweep, another one where the default is taken already, and tell Hydra.

    Arguments:
        config: the composed config; `hydra.KIND.dir` is changed in it.
        kind: `run` or `sweep`.
    """
    asked = Path(OmegaConf.select(config, f"hydra.{kind}.dir")).absolute()
    override = f"hydra.{kind}.dir="
    if any(given.lstrip("+").startswith(override) for given in config.hydra.overrides.hydra):
        asked.mkdir(parents=True, exist_ok=True)  # the user's own choice, perhaps to go on where it stopped
        return asked
    folder, attempt = asked, 1
    asked.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:  # another run started in the same second
            attempt += 1
            folder = asked.with_name(f"{asked.name}-{attempt}")
    with read_write(config), open_dict(config):
        config.hydra[kind].dir = str(folder)
        # Jobs of a sweep compose anew, in other processes, from these overrides.
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        config.hydra.overrides.hydra.append(f"{override}'{quoted}'")
    return folder


def _short(folder: Path) -> str:
    """A folder as the user would type it."""
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)

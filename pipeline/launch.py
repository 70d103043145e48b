"""One job, and a sweep of jobs: between Hydra, which composes and launches, and the workflow, which runs the stages.

Hydra calls `Preflight` in the parent before anything starts, and `job` once a job, for a sweep perhaps in other
processes or on other machines. What they have to know of one another lies in the sweep's folder (`pipeline.sweep`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
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
from omegaconf.errors import OmegaConfBaseException

from interp.errors import InterpError
from pipeline.config.paths import check_place
from pipeline.config.section import ConfigError, load
from pipeline.config.tracking import TrackingConfig, masked
from pipeline.sweep import described, job_began, job_ended, jobs_of, new_sweep, sweep_ended
from pipeline.validate import Config, localize, plain, validate
from pipeline.validate.composing import explain
from pipeline.validate.model_source import check_machine

REJECTED = 2  # exit status for a config that cannot be run
FAILED = 1
LAUNCHERS_HERE = ("BasicLauncher", "JoblibLauncher")  # others may run a job on another machine


def complain(message: str) -> None:
    """Write one message to standard error, without the password of an address."""
    print(f"error: {masked(message)}", file=sys.stderr)


@contextlib.contextmanager
def masked_logs() -> Iterator[None]:
    """Log without the passwords of addresses, whoever logs: handlers come and go with Hydra's own configuration."""
    former = logging.getLogRecordFactory()

    def make(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = former(*arguments, **named)
        with contextlib.suppress(TypeError, ValueError):  # what does not fit its arguments logging itself reports
            told = record.getMessage()
            if masked(told) != told:
                record.msg, record.args = masked(told), ()
        return record

    logging.setLogRecordFactory(make)
    try:
        yield
    finally:
        logging.setLogRecordFactory(former)


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
    values.setdefault("lens", {})  # `lens=[]` leaves no section, and DVC asks for one
    return values, validate(values)


def job(config: DictConfig) -> None:
    """Run one composed config in its run folder; called by Hydra.

    Arguments:
        config: the config, without the `hydra` node.

    Raises:
        SystemExit: a single run failed. A job of a sweep only says so, and the others go on.
    """
    settings = HydraConfig.get()
    standing, folder = Path(settings.runtime.cwd), Path(settings.runtime.output_dir)  # the process may have moved
    overrides = [masked(override) for override in settings.overrides.task]  # they are written down
    if settings.mode != RunMode.MULTIRUN:
        if not _told(_run(config, folder, overrides, None, standing), folder, standing):
            raise SystemExit(FAILED)
        return
    sweep, number = standing / settings.sweep.dir, int(settings.job.num)
    job_began(sweep, number, overrides, folder)
    finished = _told(_run(config, folder, overrides, sweep, standing), folder, standing)
    job_ended(sweep, number, overrides, folder, finished)


def _told(message: str | None, folder: Path, standing: Path) -> bool:
    """Say how a run ended; returns whether it finished."""
    if message is None:
        from pipeline.summary import summary_lines  # loads numpy, which a refused config does without

        print("\n".join(summary_lines(folder, standing)))
    else:
        shown = short(folder, standing)
        complain(message if shown in message else f"{message}\nrun folder: {shown}")
    return message is None


def _run(config: DictConfig, folder: Path, overrides: list[str], sweep: Path | None, standing: Path) -> str | None:
    """Run the stages and log the run; returns what went wrong, if anything did."""
    from pipeline.tracking.runs import Allowance, log_run, prepare, ready_beside
    from pipeline.workflow import run_job

    try:
        values, typed = checked(config, standing)
        check_machine(typed.model)
        allowance = Allowance(typed.tracking, sweep)
    except InterpError as error:
        return str(error)
    with ready_beside(typed.tracking, allowance):
        if sweep is None:
            prepare(typed.tracking, allowance)
        try:
            run_job(values, folder, overrides=overrides, sweep=None if sweep is None else _part_of(sweep, overrides))
            return None
        except (InterpError, OSError) as error:
            return str(error)
        except Exception:  # a fault of this program: the other jobs of a sweep go on, and the report names it
            return traceback.format_exc()
        finally:  # also a failed and an interrupted run
            if (folder / "run.json").is_file():
                log_run(folder, allowance)


def _part_of(sweep: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """What a job says of the sweep that it belongs to: name and key, and the overrides that are this job's own."""
    known = {"name": str(sweep), "key": str(sweep), "fixed": []} | described(sweep)
    own = [override.lstrip("+") for override in overrides if override not in known["fixed"]]
    swept = dict(override.split("=", 1) for override in own if "=" in override)
    return {"name": known["name"], "key": known["key"], "swept": swept}


@dataclass
class Sweep:
    """A sweep that has begun.

    Arguments:
        folder: the folder that holds what the sweep and its jobs say of one another.
        known: the content of its `sweep.json`.
        planned: each job's overrides; empty where the sweeper chooses them as it goes.
        tracking: each tracking that its jobs use, once.
    """

    folder: Path
    known: dict[str, Any]
    planned: list[list[str]]
    tracking: list[TrackingConfig]

    def end(self, status: str) -> None:
        """Close the sweep in tracking: `FINISHED`, `FAILED` or `KILLED`."""
        from pipeline.tracking.runs import Allowance, end_sweep, log_run
        from pipeline.workflow import settle

        for job in jobs_of(self.folder):  # an interrupted launcher kills its workers, who then say nothing
            if settle(job.folder):
                config = load(TrackingConfig, str(job.folder / "params.yaml"))
                log_run(job.folder, Allowance(config, self.folder))
        sweep_ended(self.folder, status)  # so that `python -m pipeline.tracking sync` can close it, should this fail
        for config in self.tracking:
            end_sweep(config, self.known, status, Allowance(config, self.folder))

    def failures(self) -> tuple[int, list[str]]:
        """How many jobs there were, and one line for each that did not finish."""
        jobs = {job.number: job for job in jobs_of(self.folder)}
        lines = [
            f"  {job.overrides or '(no overrides)'}: {short(job.folder)}"
            for job in jobs.values()
            if job.status != "FINISHED"
        ]
        unheard = [number for number in range(len(self.planned)) if number not in jobs]
        lines += [f"  {' '.join(self.planned[number]) or '(no overrides)'}: it did not begin" for number in unheard]
        return len(jobs) + len(unheard), lines

    def finish(self) -> int:
        """Close the sweep and say which jobs failed; returns the exit status."""
        total, failed = self.failures()
        self.end("FAILED" if failed else "FINISHED")
        print(f"sweep  {short(self.folder)}: {total - len(failed)} of {total} jobs finished")
        if failed:
            complain("\n".join([f"{len(failed)} of {total} jobs failed:", *failed]))
        return FAILED if failed else 0


begun: Sweep | None = None  # this process's sweep, for an interrupt to close


def stop(status: str) -> None:
    """Close this process's sweep in tracking, if one has begun and is not over."""
    global begun
    sweep, begun = begun, None
    if sweep is not None:
        sweep.end(status)


class Preflight(Callback):
    """Rejects bad configs and makes ready, in the parent, before Hydra starts anything (`hydra.callbacks`)."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check a single run's config and give the run a folder of its own."""
        try:
            _, typed = checked(config, Path.cwd())
            check_machine(typed.model)
            own_folder(config, "run")
        except ConfigError as error:
            complain(str(error))
            raise SystemExit(REJECTED) from None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check every job's config, give the sweep a folder of its own, and make tracking ready."""
        global begun
        jobs, fixed = _expand(config)
        tracking = _check_jobs(config, jobs)
        try:
            folder = own_folder(config, "sweep")
        except ConfigError as error:
            complain(str(error))
            raise SystemExit(REJECTED) from None
        name = folder.relative_to(Path.cwd()).as_posix() if folder.is_relative_to(Path.cwd()) else str(folder)
        asked = [masked(override) for override in config.hydra.overrides.task]
        known = new_sweep(folder, name, asked, [masked(override) for override in fixed])

        from pipeline.tracking.runs import Allowance, begin_sweep

        begun = Sweep(folder, known, jobs, tracking)
        for section in tracking:
            begin_sweep(section, known, Allowance(section, folder))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Close the sweep and say which jobs failed.

        Raises:
            SystemExit: some did.
        """
        global begun
        assert begun is not None
        sweep, begun = begun, None
        if sweep.finish():
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
    here = str(config.hydra.launcher.get("_target_", "")).endswith(LAUNCHERS_HERE)
    reasons: dict[str, list[str]] = {}
    tracking: list[TrackingConfig] = []
    folders: dict[str, int] = {}
    for number, overrides in enumerate(jobs):
        try:
            composed = loader.load_sweep_config(config, overrides)
            _, typed = checked(composed, Path.cwd())
            if here:
                check_machine(typed.model)
            _check_place(composed, number, folders)
            if typed.tracking not in tracking:
                tracking.append(typed.tracking)
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


def _check_place(composed: DictConfig, number: int, folders: dict[str, int]) -> None:
    """Check where a job will run: a folder that can be, and that no other job of the sweep has.

    Arguments:
        composed: the job's config.
        number: the job's.
        folders: folder -> the job that has it; this one is added.

    Raises:
        ConfigError: it cannot run there.
    """
    former = HydraConfig.instance().cfg
    try:
        with read_write(composed), open_dict(composed):
            composed.hydra.job.num = number
            composed.hydra.job.id = str(number)
        HydraConfig.instance().set_config(composed)  # what `${hydra:...}` reads
        place = os.path.join(composed.hydra.sweep.dir, str(composed.hydra.sweep.subdir))
    except OmegaConfBaseException:
        return  # a pattern that only the launcher can fill in
    finally:
        HydraConfig.instance().cfg = former
    check_place("hydra.sweep.subdir", place)
    other = folders.setdefault(os.path.normpath(place), number)
    if other != number:
        raise ConfigError(
            f"hydra.sweep.subdir: expected a folder for each job, got {composed.hydra.sweep.subdir!r} for jobs {other} "
            f"and {number}. Add what tells them apart, e.g. ${{hydra:job.num}}."
        )


def own_folder(config: DictConfig, kind: str) -> Path:
    """Make the folder of a run or a sweep, another one where the default is taken already, and tell Hydra.

    Arguments:
        config: the composed config; `hydra.KIND.dir` is changed in it.
        kind: `run` or `sweep`.

    Raises:
        ConfigError: there can be no such folder, or nothing can be written there.
    """
    key = f"hydra.{kind}.dir"
    asked = Path(str(OmegaConf.select(config, key))).absolute()
    chosen = any(given.lstrip("+").startswith(f"{key}=") for given in config.hydra.overrides.hydra)
    check_place(key, asked)
    try:
        folder = made_folder(asked, new=not chosen)  # the user's own choice may be to go on where it stopped
    except OSError as error:
        raise ConfigError(
            f"{key}: expected a folder that can be made and written to, got {asked} ({error.strerror or error}). "
            "Choose another one."
        ) from None
    if chosen:
        return folder
    with read_write(config), open_dict(config):
        config.hydra[kind].dir = str(folder)
        # Jobs of a sweep compose anew, in other processes, from these overrides.
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        config.hydra.overrides.hydra.append(f"{key}='{quoted}'")
    return folder


def made_folder(asked: Path, *, new: bool) -> Path:
    """Make a folder, and try whether it can be written to.

    Arguments:
        asked: where.
        new: take another name where that one is taken already.

    Raises:
        OSError: there can be no such folder.
    """
    folder, attempt = asked, 1
    asked.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            folder.mkdir(exist_ok=not new)
            break
        except FileExistsError:  # another run started in the same second; or a file is in the way
            if not new:
                raise
            attempt += 1
            folder = asked.with_name(f"{asked.name}-{attempt}")
    with tempfile.TemporaryFile(dir=folder):
        return folder


def short(folder: Path, standing: Path | None = None) -> str:
    """A folder as the user would type it, from where they stand (None: here)."""
    standing = standing or Path.cwd()
    return os.path.relpath(folder, standing) if folder.is_relative_to(standing) else str(folder)

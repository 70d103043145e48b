"""Keep the records of a sweep and its jobs, all of them in the sweep's folder.

    sweep.json      the sweep's name and key, its command line, what its jobs share; the parent writes it first, and at
                    the end how the sweep ended
    .jobs/3.json    job 3: its overrides, its run folder, how it stands; the job itself writes it, wherever it runs

Where a job runs is Hydra's to decide (`hydra.sweep.subdir`, a launcher, another machine): the parent never guesses it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import write_json

__all__ = ["Job", "described", "job_began", "job_ended", "jobs_of", "new_sweep", "sweep_ended", "sweep_of"]

RECORD, JOBS = "sweep.json", ".jobs"
WAITED = ".tracking"  # what tracking has cost the sweep (`pipeline.tracking.bounded`)
RUNNING, FINISHED, FAILED = "RUNNING", "FINISHED", "FAILED"


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as it says itself.

    Arguments:
        number: Hydra's number of it.
        overrides: its own command line.
        folder: its run folder.
        status: `RUNNING`, `FINISHED` or `FAILED`; one that is still RUNNING when the sweep is over was killed.
    """

    number: int
    overrides: str
    folder: Path
    status: str


def new_sweep(folder: Path, name: str, overrides: Sequence[str], fixed: Sequence[str]) -> dict[str, Any]:
    """Write what the jobs have to know of their sweep, and forget an earlier attempt in the same folder.

    Arguments:
        folder: the sweep's folder; it is there.
        name: its name in tracking.
        overrides: its command line.
        fixed: the overrides that all of its jobs share.

    Returns:
        The content of `sweep.json`. An earlier attempt's key stays: it is the same sweep, gone on with.
    """
    for earlier in (JOBS, WAITED):
        shutil.rmtree(folder / earlier, ignore_errors=True)
    key = described(folder).get("key") or uuid.uuid4().hex
    sweep = {"name": name, "key": key, "overrides": list(overrides), "fixed": list(fixed)}
    write_json(folder / RECORD, sweep)
    return sweep


def described(folder: Path) -> dict[str, Any]:
    """The content of `sweep.json`; empty where there is none, or half of one: the job itself goes on."""
    content: Any = {}
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def sweep_ended(folder: Path, status: str) -> None:
    """Say how a sweep ended: `FINISHED`, `FAILED` or `KILLED`.

    Arguments:
        folder: the sweep's folder.
        status: how.
    """
    with contextlib.suppress(OSError):  # a full disk: the sweep is over all the same
        write_json(folder / RECORD, described(folder) | {"status": status})


def sweep_of(run: Path, name: str, key: str, root: Path) -> Path | None:
    """The folder of the sweep that a run belongs to; None: it is not where it was, or is another sweep's now.

    Arguments:
        run: the run folder, absolute.
        name: of the sweep: its folder, by the record of the run.
        key: the sweep's key, likewise.
        root: the repository, where a relative name begins.
    """
    places = [*run.parents, root / name]  # first where it is, should both have been moved
    return next((place for place in places if described(place).get("key") == key), None)


def job_began(sweep: Path, number: int, overrides: Sequence[str], folder: Path) -> None:
    """Say that a job runs, and where."""
    _write(sweep, Job(number, " ".join(overrides), folder, RUNNING))


def job_ended(sweep: Path, number: int, overrides: Sequence[str], folder: Path, finished: bool) -> None:
    """Say how a job ended."""
    _write(sweep, Job(number, " ".join(overrides), folder, FINISHED if finished else FAILED))


def jobs_of(sweep: Path) -> list[Job]:
    """The jobs that have begun, by number."""
    jobs = []
    for file in (sweep / JOBS).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # half of one: the job is told as not begun
            said = json.loads(file.read_text(encoding="utf-8"))
            jobs.append(Job(said["number"], said["overrides"], Path(said["folder"]), said["status"]))
    return sorted(jobs, key=lambda job: job.number)


def _write(sweep: Path, job: Job) -> None:
    content = {"number": job.number, "overrides": job.overrides, "folder": str(job.folder), "status": job.status}
    write_json(sweep / JOBS / f"{job.number}.json", content)

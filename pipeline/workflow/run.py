"""One run, from a config to a finished run folder."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from yaml import YAMLError

from interp.errors import InterpError
from pipeline.config.tracking import masked
from pipeline.files import write_json
from pipeline.plugins import described
from pipeline.project import project_root
from pipeline.workflow.driver import Killed, interruptible, reproduce
from pipeline.workflow.record import git_state, now, outputs, versions
from pipeline.workflow.run_folder import prepare, read_params

__all__ = ["FORMAT", "Occupied", "resume", "run_job", "settle"]

FORMAT = "interpipe.run/1"
SHOWN_MODULES = 4  # in the line of a stage; run.json names all
log = logging.getLogger("interpipe")


def run_job(
    params: dict[str, Any], folder: str | Path, *, overrides: Sequence[str] = (), sweep: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run all stages for one config, each from the cache where any run has computed it before, and write `run.json`.

    Arguments:
        params: the whole config as plain containers, nothing left to interpolate.
        folder: the run folder; it may hold an earlier attempt with the same config, which is gone on with.
        overrides: the command line that the config came from, for the record.
        sweep: the sweep that the run belongs to (`name`, `swept`), for the record.

    Returns:
        The content of `run.json`. While the run goes on its status is RUNNING; at the end FINISHED, FAILED or KILLED.

    Raises:
        InterpError: the folder holds another run, or a stage failed: its own message and the command that goes on.
        Killed: (a KeyboardInterrupt) SIGINT, SIGTERM or SIGHUP came; the stages are gone, what they finished is kept.
    """
    with interruptible(), _alone_in(Path(folder)):
        folder = prepare(folder, params)
        started = now()
        run: dict[str, Any] = {
            "format": FORMAT,
            "status": "RUNNING",
            "message": None,
            "overrides": list(overrides),
            "sweep": sweep,
            "started": started,
            "ended": started,
            "git": git_state(project_root(folder)),
            "versions": versions(),
            "plugins": described(params.get("plugins") or ()),
            "stages": {},
            "outputs": {},
        }
        write_json(folder / "run.json", run)  # whoever is killed without a word has said what the run was
        try:
            _run_stages(folder, run["stages"])
            run["status"] = "FINISHED"
        except InterpError as error:
            run |= {"status": "FAILED", "message": str(error)}
            raise
        except KeyboardInterrupt as error:
            killed = error if isinstance(error, Killed) else Killed(signal.SIGINT)
            run |= {"status": "KILLED", "message": f"{killed}; what is finished is kept"}
            raise killed from None
        except BaseException as error:
            run |= {"status": "FAILED", "message": f"{type(error).__name__}: {error}"}
            raise
        finally:
            run |= {"ended": now(), "outputs": outputs(folder, run["stages"])}
            write_json(folder / "run.json", run)
    return run


def resume(folder: str | Path) -> dict[str, Any]:
    """Go on with a run that failed or was killed, with the same config.

    Arguments:
        folder: its run folder.

    Returns, Raises:
        As `run_job`.
    """
    params = read_params(folder)
    earlier = _earlier(Path(folder))
    return run_job(params, folder, overrides=earlier.get("overrides") or [], sweep=earlier.get("sweep"))


def _earlier(folder: Path) -> dict[str, Any]:
    """The record of an earlier attempt; of one that cannot be read, what Hydra wrote down beside it."""
    record = folder / "run.json"
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return {}
    except ValueError:
        log.warning("%s cannot be read; it is written anew, without the name of a sweep", record)
    with contextlib.suppress(OSError, YAMLError):
        found = OmegaConf.load(folder / ".hydra" / "overrides.yaml")  # perhaps cut short as well
        return {"overrides": [masked(text) for text in found if isinstance(text, str)]}
    return {}


def settle(folder: str | Path) -> bool:
    """Record that a run was killed, where its process could not say so itself; a run that still goes on is left alone.

    Arguments:
        folder: its run folder.

    Returns:
        Whether that had to be recorded.
    """
    record = Path(folder) / "run.json"
    if not record.is_file():
        return False
    with contextlib.suppress(Occupied), _alone_in(Path(folder)):
        run = _earlier(Path(folder))
        if run.get("status") == "RUNNING":
            message = "the process was killed; what is finished is kept"
            write_json(record, run | {"status": "KILLED", "message": message, "ended": now()})
            return True
    return False


class Occupied(InterpError):
    """Another process is at work in a run folder."""


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a run folder; the lock goes with the process, however that ends.

    Raises:
        Occupied: another process holds it.
    """
    lock = FileLock(folder / ".dvc" / "driver.lock")
    (folder / ".dvc").mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Occupied(f"another process is at work in this run folder, {folder}. Wait for it or stop it.") from None
    try:
        yield
    finally:
        lock.release()


def resume_command(folder: Path) -> str:
    """The command that goes on with a run, as one types it where one stands."""
    standing, root = Path.cwd(), project_root(folder)
    shown = os.path.relpath(folder, standing) if folder.is_relative_to(root) and standing == root else str(folder)
    command = f"python -m pipeline.workflow resume {shlex.quote(shown)}"
    return command if standing == root else f"cd {shlex.quote(str(root))} && {command}"


def _run_stages(folder: Path, stages: dict[str, dict[str, Any]]) -> None:
    """Run the stages; fills `stages` as they get done.

    Raises:
        InterpError: one failed.
    """
    failure: tuple[str | None, str] | None = None
    with contextlib.closing(reproduce(folder)) as told:
        for news in told:
            name = news.pop("stage")
            if "failed" in news:
                failure = failure or (name, news["failed"])
            elif "waiting" in news:
                log.info("%s: another run is computing it, waiting", name)
            elif "broken" in news:
                what = f"{name}: {news['broken']}" if name else news["broken"]
                log.warning("%s; it is computed again, or taken whole from the cache", what)
            else:
                upgraded, others = news.pop("upgraded", None), news.pop("other_versions", None)
                stages[name] = news
                reasons = [_versions(upgraded, "was")] if upgraded else []
                reasons += [_modules(changed)] if (changed := news.get("changed_code")) else []
                again = f", computed again for {' and '.join(reasons)}" if reasons else ""
                log.info("%s: %s%s", name, "cached" if news["cached"] else f"{news['seconds']:.1f} s", again)
                if others:
                    log.warning("%s: taken as it is, computed with %s", name, _versions(others, "now"))
    if failure is not None:
        name, message = failure
        what = f"stage {name} failed" if name else "the stages could not be run"
        raise InterpError(
            f"{what}: {message}\nWhat is finished is kept. Go on from there with\n    {resume_command(folder)}"
        )


def _modules(changed: Sequence[str]) -> str:
    """Modules whose code means something else than before: `changes in interp.a, interp.b and 3 more`."""
    more = f" and {len(changed) - SHOWN_MODULES} more" if len(changed) > SHOWN_MODULES else ""
    return f"changes in {', '.join(changed[:SHOWN_MODULES])}{more}"


def _versions(changed: dict[str, list[str]], word: str) -> str:
    """Libraries with two versions each: `torch 2.14.0 (was 2.13.0)`, `torch 2.13.0 (now 2.14.0)`.

    Arguments:
        changed: library -> versions before and now.
        word: `was`: the version now comes first; `now`: the one before does.
    """
    pairs = [(name, *(pair[::-1] if word == "was" else pair)) for name, pair in changed.items()]
    return ", ".join(f"{name} {first} ({word} {second})" for name, first, second in pairs)

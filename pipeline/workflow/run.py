"""One run, from a config to a finished run folder and its record, `run.json`; the driver's side of the process that
runs the stages, and its end, whatever ends it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from yaml import YAMLError

import interp
from interp.errors import InterpError
from pipeline.config.tracking import masked
from pipeline.files import write_json
from pipeline.plugins import described
from pipeline.project import project_root
from pipeline.workflow.run_folder import prepare, read_params

__all__ = [
    "FORMAT",
    "Killed",
    "Occupied",
    "git_state",
    "interruptible",
    "now",
    "outputs",
    "reproduce",
    "resume",
    "run_job",
    "settle",
    "versions",
]


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


LIBRARIES = (
    "torch", "transformers", "tokenizers", "nnsight", "accelerate", "datasets", "numpy", "zarr",
    "pyarrow", "hydra-core", "omegaconf", "dvc", "mlflow",
)  # fmt: skip


def now() -> str:
    """This moment, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def versions() -> dict[str, str]:
    """Versions of Python, of this project and of the libraries that results depend on; nothing is imported for it."""
    found = {"python": platform.python_version(), "interpipe": interp.__version__}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue  # an optional one
    return found


def git_state(root: Path) -> dict[str, Any]:
    """The state of the code: `commit`, `branch` (null: none or detached) and `dirty`; all null outside git.

    Arguments:
        root: the repository's folder.
    """

    def git(*arguments: str) -> str | None:
        try:
            ran = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
        except OSError:  # no git on this machine
            return None
        return ran.stdout.strip() if ran.returncode == 0 else None

    changes = git("status", "--porcelain")
    return {
        "commit": git("rev-parse", "--verify", "--quiet", "HEAD"),
        "branch": git("symbolic-ref", "--short", "--quiet", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def outputs(folder: Path, stages: Iterable[str]) -> dict[str, str]:
    """Content hashes of what stages made, by artifact, as DVC has them in `dvc.lock`.

    Arguments:
        folder: the run folder.
        stages: the stages that are done.
    """
    lock = folder / "dvc.lock"
    if not lock.is_file():
        return {}
    locked = yaml.load(lock.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"]
    return {out["path"]: out["md5"] for stage in stages for out in locked.get(stage, {}).get("outs", [])}


GRACE_SECONDS = 10  # that an interrupted stage has to end by itself


class Killed(KeyboardInterrupt):
    """The run was stopped from outside.

    Arguments:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGINT, SIGTERM (batch systems) and SIGHUP (a lost terminal) raise `Killed` in the main thread.

    A signal that is ignored stays ignored, so that `nohup` works.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not for other threads
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Killed(number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.getsignal(number) for number in signals}
    for number, handler in former.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def reproduce(folder: Path) -> Generator[dict[str, Any], None, None]:
    """Bring all stages of a run folder up to date; see `pipeline.workflow.worker` for what is told meanwhile.

    Arguments:
        folder: a run folder that `prepare` made.

    Yields:
        What the process tells: a stage that is done, that waits, that failed.

    Raises:
        Killed: a signal came; the stages got it too, and are gone.
    """
    ours, theirs = socket.socketpair()
    environment = {name: value for name, value in os.environ.items() if name not in ("DVC_ROOT", "DVC_STAGE")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.workflow.worker", str(theirs.fileno())],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # signals come from here, in order, and reach whatever the stages started
            )
        try:
            with ours.makefile("r", encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            if ended is not None and ended.si_code != os.CLD_EXITED:  # killed: so is all that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        except BaseException as interruption:
            end(process, interruption.number if isinstance(interruption, Killed) else signal.SIGTERM)
            raise
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        yield {"stage": None, "failed": f"the process that runs the stages was killed by {name}"}
    elif process.returncode not in (0, 1):
        yield {"stage": None, "failed": f"the process that runs the stages exited with {process.returncode}"}


def end(process: subprocess.Popen[bytes], number: int) -> None:
    """End a process and all that it started: by a signal, then, after some seconds or a second signal, by SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

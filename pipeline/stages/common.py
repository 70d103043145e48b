"""What every stage shares: the command line entry, progress, scratch folders and publishing by rename."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from interp.errors import InterpError
from pipeline.files import digest_of, write_json
from pipeline.fingerprints import of_stages
from pipeline.interrupts import quiet_interrupts
from pipeline.plugins import described, load, of_run
from pipeline.project import state_folder
from pipeline.stages.versions import installed, write_record

Item = TypeVar("Item")
log = logging.getLogger("interpipe")


def progress(items: Iterable[Item] | Sequence[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a progress bar on a terminal, and with a plain log line every ten seconds elsewhere.

    Arguments:
        items: what is iterated.
        label: what is being done.
        total: number of items, where `items` has no length.
    """
    total = total if total is not None else (len(items) if isinstance(items, Sequence) else None)
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=label, total=total)
        return
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > 10:
            last = time.monotonic()
            log.info("%s: %d of %s", label, done, "?" if total is None else total)
        yield item


@contextlib.contextmanager
def beside() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Do pieces of work one after the other in a thread, beside what the caller does.

    Yields:
        Starts a piece of work, once the one before it is done, so that the caller is never more than one ahead. What a
        piece raises is raised by the next start, or when the block ends; no later piece is begun.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        under_way: Future[None] | None = None

        def start(work: Callable[[], None]) -> None:
            nonlocal under_way
            if under_way is not None:
                under_way.result()
            under_way = thread.submit(work)

        yield start
        if under_way is not None:
            under_way.result()


@contextlib.contextmanager
def scratch(stage: str, key: str) -> Iterator[Path]:
    """A folder for unfinished work that survives a crash, held by one process at a time.

    DVC deletes a stage's outputs before it runs the stage, so work that can be resumed lives outside the run folder,
    named by all that determines its result; a second process that wants the same work waits.

    Arguments:
        stage: name of the stage.
        key: digest of all that determines the result: config sections, inputs, code.

    Yields:
        The folder. It may hold what an earlier process left. It is removed when the block ends without an exception.
    """
    key = digest_of(key, installed(stage))  # nor is work resumed that other versions of libraries began
    folder = state_folder() / "scratch" / f"{stage}-{key[:20]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def code_digest(stage: str) -> str:
    """SHA-256 over the fingerprints of a stage's code, so that work begun by code of another meaning is not resumed."""
    return code_digests([stage])[stage]


def code_digests(stages: Sequence[str]) -> dict[str, str]:
    """As `code_digest`, of several stages: stage -> SHA-256."""
    plugins = described(of_run())
    found = of_stages(stages)
    return {stage: digest_of(found[stage], *([plugins] if plugins else [])) for stage in stages}


def stage_main(name: str, stage: Callable[[], dict[str, float] | None]) -> None:
    """Run a stage as a command: plain log lines, one readable message for a fault, seconds kept beside the artifacts.

    Arguments:
        name: name of the stage.
        stage: does the work in the current folder; may return measurements (`tokens`, `model_seconds`, ...), which go
            with `seconds` to `timings/NAME.json`. That file is not an artifact: a cached stage leaves none. One is
            `versions/NAME.json`, with the versions of the stage's libraries.

    Raises:
        SystemExit: status 1 after a fault that has a message, 130 after an interrupt.
    """
    logging.basicConfig(level=logging.INFO, format=f"[{name}] %(message)s", stream=sys.stderr)
    quiet_interrupts()
    started = time.perf_counter()
    try:
        load(of_run())
        measured = stage() or {}
        write_record(name)
    except KeyboardInterrupt:
        print(f"[{name}] interrupted; what is finished is kept, the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    except (InterpError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            message = f"the disk is full ({error}). Free some space; the same command then goes on from there."
        print(f"[{name}] error: {message}", file=sys.stderr)
        raise SystemExit(1) from None
    seconds = time.perf_counter() - started
    write_json(f"timings/{name}.json", {"seconds": seconds, **measured})

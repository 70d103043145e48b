"""What every stage shares: the command line entry, progress, scratch folders and publishing by rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

import pipeline
from interp.errors import InterpError
from pipeline.interrupts import quiet_interrupts

Item = TypeVar("Item")
log = logging.getLogger("interpipe")


def repository_root() -> Path:
    """The folder that holds the code, also when it is reached through a run folder's links."""
    return Path(pipeline.__file__).resolve().parent.parent


def digest_of(*parts: Any) -> str:
    """SHA-256, in hexadecimal, of plain values written as JSON with sorted keys.

    Arguments:
        parts: anything that JSON can write; dataclasses through `dataclasses.asdict` first.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256, in hexadecimal, of a file's bytes, or of a folder's relative names and bytes in sorted order."""
    path = Path(path)
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode("utf-8") + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


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
    from pipeline.stages.versions import installed

    key = digest_of(key, installed(stage))  # nor is work resumed that other versions of libraries began
    folder = repository_root() / ".interpipe" / "scratch" / f"{stage}-{key[:20]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def publish(finished: Path, destination: str | Path) -> None:
    """Move a finished file or folder to its place, by one rename, so that nothing half-written is ever seen there.

    Arguments:
        finished: the finished file or folder, in a scratch folder.
        destination: its place; what is there is replaced.
    """
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    staged = destination.with_name(f".{destination.name}.incoming")
    replaced = destination.with_name(f".{destination.name}.outgoing")
    for left in (staged, replaced):  # of a process that was killed
        _remove(left)
    shutil.move(finished, staged)  # may cross file systems; the renames below never do
    if staged.is_dir() or destination.is_dir():
        # No rename replaces a folder, and one that is removed where it stands would stand there in half.
        with contextlib.suppress(FileNotFoundError):
            os.replace(destination, replaced)
    os.replace(staged, destination)
    _remove(replaced)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file by one rename: whoever is killed meanwhile leaves the old one, whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.incoming")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, path)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with sorted keys and a final newline, by one rename."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def code_digest(stage: str) -> str:
    """SHA-256 over the code that `dvc.yaml` lists for a stage, so that work begun by other code is not resumed."""
    from omegaconf import OmegaConf

    root = repository_root()
    config = OmegaConf.to_container(OmegaConf.load(root / "dvc.yaml"), resolve=False)
    assert isinstance(config, dict)
    files = [d for d in config["stages"][stage]["deps"] if str(d).endswith(".py")]
    return digest_of([[file, file_digest(root / file)] for file in files])


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
    from pipeline.stages.versions import write_record

    logging.basicConfig(level=logging.INFO, format=f"[{name}] %(message)s", stream=sys.stderr)
    quiet_interrupts()
    started = time.perf_counter()
    try:
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

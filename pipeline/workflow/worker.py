"""The process that runs the stages of one run folder through DVC; `pipeline.workflow.run` starts it there.

    python -m pipeline.workflow.worker DESCRIPTOR

DVC does what `dvc repro` does: nothing for a stage that is up to date, a checkout from the cache for one that any run
has computed before, else the stage's command. What is added here: a lock, so that of several runs which need the same
missing stage one computes and the others wait for it; and news of each stage, as JSON lines through a socket to the
driver:

    {"stage": "collect", "cached": false, "seconds": 3.2, ...}   done; ...: timings/collect.json, `versions`, changes
    {"stage": "collect", "waiting": true}                        another run is computing it
    {"stage": "collect", "broken": "what"}                       of what is in the cache; it is computed again
    {"stage": "collect", "failed": "why"}                        the last word; stage is null where it was none's fault

The socket closes when the driver dies, however it dies; then this process and its stages end too.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.stage import Stage
from filelock import FileLock, Timeout

from interp.errors import InterpError
from pipeline.config.section import load
from pipeline.config.tracking import CacheConfig
from pipeline.files import digest_of
from pipeline.fingerprints import VERSIONS_FILE, changed_modules, changes, installed
from pipeline.plugins import of_run
from pipeline.process import quiet_interrupts
from pipeline.project import project_root
from pipeline.stages.code import write_code
from pipeline.workflow.cache import (
    RunFolder,
    code_of,
    forget_the_dead,
    hashed_once,
    mend_lock,
    own_copies,
    parsed_once,
    read_json,
    write_lock,
)
from pipeline.workflow.warm import forked_stages

TAIL_BLOCKS, TAIL_LINES = 64, 20
CODE_COMMAND = "python -m pipeline.stages.code"
EXITED = re.compile(r"exited with (-?\d+)$")


class Missing(DvcException):
    """A file that a stage depends on is not there."""


def stage_key(stage: Stage) -> str:
    """Digest of all that determines a stage's outputs: its command, its parameters and its dependencies' content.

    Arguments:
        stage: of the run folder.

    Versions of libraries are left out: in another environment it is the same stage.

    Raises:
        Missing: a dependency does not exist.
    """
    dependencies = []
    for dependency in stage.deps:
        if dependency.def_path == VERSIONS_FILE:
            continue
        if not dependency.exists:
            raise Missing(f"it depends on {dependency.def_path}, which does not exist")
        dependencies.append([dependency.def_path, dependency.get_hash().value])
    return digest_of(stage.cmd, sorted(dependencies, key=lambda pair: pair[0]), [out.def_path for out in stage.outs])


@contextlib.contextmanager
def captured(tail: deque[bytes]) -> Iterator[None]:
    """Keep the end of what this process and its children write to the terminal, while it also goes there.

    Arguments:
        tail: gets the blocks that were written. Standard output goes to standard error, where a stage's words belong.
    """
    reading, writing = os.pipe()
    terminal, former_out = os.dup(2), os.dup(1)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)

    def copy() -> None:
        while block := os.read(reading, 1 << 12):
            tail.append(block)
            with contextlib.suppress(OSError):  # the terminal may be gone; the stage need not know
                os.write(terminal, block)

    copier = threading.Thread(target=copy, daemon=True)
    copier.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(former_out, 1)
        os.dup2(terminal, 2)
        os.close(former_out)
        copier.join(timeout=5)  # longer only where a stage left a process behind that holds the pipe


def reason(stage: str, tail: deque[bytes], error: Exception) -> str:
    """Why a stage failed, in its own words where it had any.

    Arguments:
        stage: its name.
        tail: the end of what it wrote.
        error: DVC's.
    """
    exited = EXITED.search(str(error))
    if exited is None:  # not the command's fault
        return str(error)
    text = b"".join(tail).decode("utf-8", errors="replace")
    own_word = f"[{stage}] error: "  # see `pipeline.stages.common.stage_main`
    if own_word in text:
        return text.rsplit(own_word, 1)[1].strip()
    number = int(exited[1])
    number = -number if number < 0 else number - 128  # a shell in between says 128 + signal
    if number in signal.valid_signals():
        name = signal.Signals(number).name
        hint = "; the system does that to a process that takes too much memory" if name == "SIGKILL" else ""
        return f"it was killed by {name}{hint}"
    return "\n".join(text.strip().splitlines()[-TAIL_LINES:]) or str(error)


class Stages:
    """Runs stages one by one, for `Repo.reproduce`, and tells the driver.

    Arguments:
        driver: the socket to it.
    """

    def __init__(self, driver: socket.socket) -> None:
        self.driver = driver
        self.name: str | None = None  # of the stage that is being brought up to date

    def tell(self, **news: Any) -> None:
        """Send one line to the driver."""
        self.driver.sendall(json.dumps(news).encode("utf-8") + b"\n")

    def say_broken(self, what: str) -> None:
        """Tell that something in the cache, or in the run folder, was not what its name says."""
        self.tell(stage=self.name, broken=what)

    def __call__(self, stage: Stage, **options: Any) -> Stage | None:
        """Bring one stage up to date.

        Arguments:
            stage: of the run folder.
            options: for DVC's `Stage.reproduce`.

        Returns:
            The stage, None where it was up to date.

        Raises:
            DvcException: it failed; the driver has been told.
        """
        name = stage.addressing
        started = time.perf_counter()
        tail: deque[bytes] = deque(maxlen=TAIL_BLOCKS)
        self.name = name
        measured = Path("timings", f"{name}.json")
        computed: dict[str, Any] | None = None
        code = code_of(stage)  # as it was when this run folder, or another one, had the stage computed
        try:
            if stage.always_changed:  # it computes nothing, but says what there is
                with captured(tail):
                    if stage.cmd == CODE_COMMAND and not of_run():
                        self.say_code(stage)
                    else:
                        stage.reproduce(**options)
                write_lock(stage)
                return stage
            stage.repo.stage_cache.forget()
            changed = stage if stage.changed() or not stage.repo.stage_cache.check(stage.outs, in_place=True) else None
            if changed is not None:
                measured.unlink(missing_ok=True)  # afterwards there is one only if the stage has run
                with self.held(stage), captured(tail), hashed_once(stage):
                    changed = stage.reproduce(**options)
                    if changed is not None:
                        write_lock(changed)
                        own_copies(changed)
                computed = json.loads(measured.read_text(encoding="utf-8")) if measured.is_file() else None
        except Exception as error:
            self.tell(stage=name, failed=reason(name, tail, error))
            raise
        seconds = time.perf_counter() - started
        news = {"stage": name, "cached": computed is None, "seconds": seconds, **(computed or {})}
        code = code or stage.repo.stage_cache.code or {}
        if computed is not None and code and (changes_in := changed_modules(code, code_of(stage))):
            news["changed_code"] = changes_in
        self.tell(**news, **self.versions(stage, computed is not None))
        return changed

    def say_code(self, stage: Stage) -> None:
        """Do what stage `code` does; its process would take as long to start as this takes.

        Arguments:
            stage: `code`, of a run without plugins, whose modules a process of their own has to import.

        Raises:
            DvcException: a file of the code is no Python, or nothing can be written here.
        """
        stage.remove_outs()
        try:
            write_code()
        except (InterpError, OSError) as error:
            raise DvcException(str(error)) from None
        stage.save(run_cache=False)

    @cached_property
    def policy(self) -> str:
        """`cache.versions` of the run folder."""
        return load(CacheConfig).versions

    def versions(self, stage: Stage, computed: bool) -> dict[str, Any]:
        """What to tell of the versions of libraries that a stage's artifacts were computed with.

        Arguments:
            stage: one that is done.
            computed: in this run.

        Returns:
            `versions`, whole ones by library; `upgraded`, library -> (before, now), where another minor version is why
            the stage was computed again; `other_versions`, likewise, where it was taken in spite of that.
        """
        name = stage.addressing
        recorded = read_json(Path("versions", f"{name}.json"))
        if recorded is None:
            return {}
        told: dict[str, Any] = {"versions": recorded}
        if computed and self.policy == "recompute":
            before = stage.repo.stage_cache.versions_before(stage)
            if before and changes(before, recorded):
                told["upgraded"] = changes(before, recorded)
        if not computed and self.policy == "warn" and changes(recorded, installed(name)):
            told["other_versions"] = changes(recorded, installed(name))
        return told

    @contextlib.contextmanager
    def held(self, stage: Stage) -> Iterator[None]:
        """Hold the lock of all that determines a stage: nobody else computes the same meanwhile.

        The files of these locks are empty, and stay: removing one that somebody may be waiting for would break it.
        """
        folder = project_root() / ".interpipe" / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{stage.addressing}-{stage_key(stage)[:20]}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.tell(stage=stage.addressing, waiting=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def follow_into_death(driver: socket.socket) -> None:
    """Kill this process and the stage that it runs as soon as the driver is gone."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while driver.recv(1):
                pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Run all stages of the run folder in which the process stands; returns the exit status."""
    driver = socket.socket(fileno=int(sys.argv[1]))
    if os.getpgrp() != os.getpid():
        raise SystemExit("expected a process group of its own, see pipeline.workflow.run")
    follow_into_death(driver)
    quiet_interrupts()
    gc.disable()  # to look for what can be freed takes a sixth of the time, and there is little
    logging.getLogger("dvc").setLevel(logging.CRITICAL)  # the driver says what there is to say
    stages = Stages(driver)
    told = False

    def run(stage: Stage, upstream: Any = None, force: bool = False, interactive: bool = False) -> Stage | None:
        nonlocal told
        try:
            return stages(stage, upstream=upstream, force=force, interactive=interactive)
        except Exception:
            told = True
            raise

    try:
        forget_the_dead(Path.cwd())
        if mend_lock(Path.cwd()):
            stages.say_broken("dvc.lock was left in half and is thrown away")
        with parsed_once(), forked_stages(), RunFolder(".", stages.say_broken) as folder:
            folder.reproduce(repro_fn=run)
    except KeyboardInterrupt:
        return 130
    except DvcException as error:
        if not told:
            stages.tell(stage=None, failed=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

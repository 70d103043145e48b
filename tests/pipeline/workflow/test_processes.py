"""Several runs at once, and runs that are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipeline.workflow import settle
from tests.pipeline.workflow.miniature import params, ran, record, run, start

PATIENCE_SECONDS = 60


def stage_process(root: Path) -> int:
    """Wait until `first` runs; returns its process id."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    file = root / "ran.txt"
    while not (file.exists() and file.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(file.read_text().splitlines()[-1].split()[1])


def is_gone(process: int) -> bool:
    """Whether a process ends soon."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a run; returns (exit status, standard error)."""
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, errors


def test_two_runs_that_need_the_same_stage_compute_it_once(root: Path) -> None:
    one = start(root, "outputs/1", params(gate="gate"))
    stage_process(root)
    two = start(root, "outputs/2", params(gate="gate", title="another"))
    assert two.stderr is not None
    assert two.stderr.readline() == "first: another run is computing it, waiting\n"
    (root / "gate").touch()
    assert finish(one)[0] == 0
    status, said = finish(two)
    assert status == 0
    assert said.startswith("first: cached\n")
    assert sorted(ran(root)) == ["first", "second", "second"]
    assert record(root, "outputs/1")["stages"]["first"]["cached"] is False
    assert record(root, "outputs/2")["stages"]["first"]["cached"] is True


def test_a_run_that_waits_computes_what_the_other_could_not(root: Path) -> None:
    one = start(root, "outputs/1", params(gate="gate"))
    process = stage_process(root)
    two = start(root, "outputs/2", params(gate="gate"))
    assert two.stderr is not None
    assert "waiting" in two.stderr.readline()
    os.kill(process, signal.SIGKILL)
    assert finish(one)[0] == 1
    (root / "gate").touch()
    assert finish(two)[0] == 0
    assert ran(root) == ["first", "first", "second"]


def test_two_processes_in_one_run_folder_are_refused(root: Path) -> None:
    one = start(root, "outputs/1", params(gate="gate"))
    stage_process(root)
    status, said = run(root, "outputs/1", params(gate="gate"))
    assert status == 1
    assert "another process is at work in this run folder" in said
    settle(root / "outputs/1")
    settle(root / "outputs/none")
    assert record(root, "outputs/1")["status"] == "RUNNING"
    (root / "gate").touch()
    assert finish(one)[0] == 0
    assert record(root, "outputs/1")["status"] == "FINISHED"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_stages_and_is_recorded(root: Path, number: signal.Signals) -> None:
    driver = start(root, "outputs/1", params(gate="gate"))
    stage = stage_process(root)
    os.kill(driver.pid, number)
    status, said = finish(driver)
    assert status == 130
    assert is_gone(stage)
    killed = record(root, "outputs/1")
    assert killed["status"] == "KILLED"
    assert killed["message"] == f"stopped by {number.name}; what is finished is kept"
    assert ("[first] interrupted; what is finished is kept" in said) == (number == signal.SIGINT)
    (root / "gate").touch()
    assert run(root, "outputs/1", None)[0] == 0
    assert record(root, "outputs/1")["status"] == "FINISHED"


def test_stages_do_not_outlive_a_driver_that_is_killed(root: Path) -> None:
    driver = start(root, "outputs/1", params(gate="gate"))
    stage = stage_process(root)
    os.killpg(driver.pid, signal.SIGKILL)
    assert finish(driver)[0] == -signal.SIGKILL
    assert is_gone(stage)
    left = record(root, "outputs/1")
    assert left["status"] == "RUNNING"  # nobody was there to say more
    assert left["overrides"] == ["a=b"]
    settle(root / "outputs/1")
    settled = record(root, "outputs/1")
    assert settled["status"] == "KILLED"
    assert settled["message"] == "the process was killed; what is finished is kept"
    assert settled["ended"] > left["ended"]
    (root / "gate").touch()
    assert run(root, "outputs/1", None)[0] == 0
    assert record(root, "outputs/1")["overrides"] == ["a=b"]
    assert ran(root) == ["first", "first", "second"]


@pytest.mark.parametrize("left", ['{"write": {"%s": {"pid": %d, "cmd": "dvc"}}}', '{"write": {"%s": {"pid": %d'])
def test_what_killed_processes_hold_is_given_up(root: Path, left: str) -> None:
    run(root, "outputs/1", params())
    zombie = subprocess.Popen(["true"])
    assert is_gone(zombie.pid)  # and nobody has collected it
    (root / "outputs/1/.dvc/tmp/rwlock").write_text(left % (root / "outputs/1/first.txt", zombie.pid))
    (root / "outputs/1/first.txt").unlink()
    assert run(root, "outputs/1", params()) == (0, "first: cached\nsecond: cached\n")
    assert zombie.wait() == 0

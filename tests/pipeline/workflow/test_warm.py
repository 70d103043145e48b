"""The warm process: what it runs is as the plain command would be, and none of it is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.pipeline.workflow.miniature import params, ran, record, run, start
from tests.pipeline.workflow.test_processes import finish, is_gone, stage_process

PLAIN = {"INTERPIPE_FORK": "0"}

# `first` changes all that a process has; both write down what they find, and which process they are a child of.
LOOKS = """
import json, os, random, signal, sys
from pathlib import Path
import psutil
from pipeline.project import project_root

def look(stage):
    found = {
        "environment": {n: v for n, v in os.environ.items() if n not in ("SHLVL", "_", "PWD", "INTERPIPE_FORK")},
        "folder": os.getcwd(), "path": sys.path, "arguments": sys.argv[1:], "leak": "leak" in sys.modules,
        "main": sys.modules["__main__"].__spec__.name,
        "interrupt": str(signal.getsignal(signal.SIGINT)).split(" at ")[0],
        "seeded": random.random() == random.Random(7).random(),
    }
    parent = psutil.Process().parent().cmdline()
    (project_root() / f"{stage}.json").write_text(json.dumps([found, parent]))
"""
CHANGES = """
    import types
    os.environ["LEAK"] = "1"
    sys.modules["leak"] = types.ModuleType("leak")
    sys.path.append("leak")
    random.seed(7)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
"""


def looking(root: Path) -> None:
    """Let the stages write down what they find in their process; the first leaves it changed."""
    for name, more in (("first", CHANGES), ("second", "")):
        file = root / f"pipeline/stages/{name}.py"
        text = file.read_text().replace("def run():\n", f"def run():\n    look({name!r})\n{more}")
        file.write_text(LOOKS + text)


def test_a_fork_finds_what_a_plain_command_does_and_makes_the_same_bytes(root: Path) -> None:
    looking(root)
    made, found = [], []
    for number in ("forked", "plain"):
        folder = root / "outputs" / "1"
        assert run(root, "outputs/1", params(), **(PLAIN if number == "plain" else {}))[0] == 0
        made.append(
            {f: (folder / f).read_bytes() for f in ("dvc.lock", "first.txt", "second/text.txt", "code/first.json")}
        )
        for stage in ("first", "second"):
            seen, parent = json.loads((root / f"{stage}.json").read_text())
            assert ("pipeline.workflow.warm" in parent) == (number == "forked")
            found.append(seen)
        shutil.rmtree(root / "outputs")
        shutil.rmtree(root / ".dvc" / "cache")
    assert made[0] == made[1]
    for one, other in zip(found[:2], found[2:], strict=True):
        assert one.pop("environment").items() ^ other.pop("environment").items() == set()
        assert {key: (one[key], other[key]) for key in one if one[key] != other[key]} == {}
    assert not found[1]["leak"] and not found[1]["seeded"]


def warm_of(stage: int) -> psutil.Process:
    """The warm process that a stage is a fork of."""
    warm = psutil.Process(stage).parent()
    assert warm is not None and "pipeline.workflow.warm" in warm.cmdline()
    return warm


@pytest.mark.parametrize("killed", ["stage", "warm process", "worker"])
def test_whatever_is_killed_the_rest_goes_too_and_the_run_goes_on_later(root: Path, killed: str) -> None:
    driver = start(root, "outputs/1", params(gate="gate"))
    stage = stage_process(root)
    warm = warm_of(stage)
    worker = warm.ppid()
    os.kill({"stage": stage, "warm process": warm.pid, "worker": worker}[killed], signal.SIGKILL)
    status, said = finish(driver)
    assert status == 1
    message = "the process that runs the stages was killed by SIGKILL"
    assert (message if killed == "worker" else "stage first failed: it was killed by SIGKILL") in said
    assert all(is_gone(process) for process in (stage, warm.pid, worker))
    (root / "gate").touch()
    assert run(root, "outputs/1", None)[0] == 0
    assert record(root, "outputs/1")["status"] == "FINISHED"
    assert ran(root) == ["first", "first", "second"]


def test_no_process_is_left_and_none_is_started_where_all_is_cached(root: Path) -> None:
    assert run(root, "outputs/1", params())[0] == 0

    def below() -> list[list[str]]:
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(root):
                    found.append(process.cmdline())
            except psutil.Error:
                continue
        return found

    assert below() == []
    file = root / "pipeline/workflow/warm.py"
    file.write_text(
        file.read_text().replace("    _die_with(os.getppid())\n", f"    open({str(root / 'warm')!r}, 'w').close()\n")
    )
    assert run(root, "outputs/2", params()) == (0, "first: cached\nsecond: cached\n")
    assert not (root / "warm").exists()
    assert run(root, "outputs/3", params(title="another"))[0] == 0
    assert (root / "warm").exists()


@pytest.mark.parametrize(
    "fault", ["raise RuntimeError('no fork')", "import threading; threading.Thread(target=input).start()"]
)
def test_a_stage_that_cannot_be_forked_is_a_plain_command(root: Path, fault: str) -> None:
    """A module that fails as it is imported here alone; one that starts a thread."""
    file = root / "pipeline/stages/second.py"
    guarded = f"import sys\nif 'warm' in sys.argv[0]:\n    {fault}\n"
    file.write_text(guarded + file.read_text())
    assert run(root, "outputs/1", params())[0] == 0
    assert ran(root) == ["first", "second"]


FORKS = """
import importlib, os, threading
from pipeline.workflow.warm import needed
for name in needed("pipeline.stages.tokenize"):
    importlib.import_module(name)
import torch
assert threading.active_count() == 1
others = [n for n in os.listdir("/proc/self/task") if int(n) != os.getpid()]
threads = {open(f"/proc/self/task/{n}/comm").read().strip() for n in others}
assert threads <= {"jemalloc_bg_thd"}, threads  # that of pyarrow's memory, which knows of forks
assert not torch.cuda.is_initialized()
child = os.fork()
if child == 0:
    torch.set_num_threads(2)
    x = torch.arange(512 * 512, dtype=torch.float64).reshape(512, 512) % 7
    ones = torch.ones(512, 512, dtype=torch.float64)
    right = torch.equal(x @ ones, x.sum(1, keepdim=True).expand(512, 512))
    os._exit(0 if right and len(os.listdir("/proc/self/task")) > 1 else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_what_the_stages_import_leaves_a_process_that_can_be_forked() -> None:
    """No thread, no CUDA; and torch's threads work in the fork."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}
    forked = subprocess.run([sys.executable, "-c", FORKS], env=environment, capture_output=True, text=True, timeout=300)
    assert forked.returncode == 0, forked.stderr

"""Workers in processes of their own, their environments, and the table."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lenses import environments, gpu
from benchmarks.lenses.environments import NoEnvironmentError, python_for
from benchmarks.lenses.floor import LIBRARIES
from benchmarks.lenses.measure import Options, Team, measure_works, shares
from benchmarks.lenses.model import Shape, save
from benchmarks.lenses.table import growth_table, works_table
from benchmarks.lenses.team import Worker, WorkerError
from benchmarks.lenses.works import Work, make_inputs

SHAPE = Shape(layers=3, hidden=16, mlp=40, vocabulary=60, heads=2)


def test_a_worker_answers_and_goes_on_after_an_error(tmp_path: Path) -> None:
    save(tmp_path / "model", SHAPE)
    inputs = make_inputs(Work("collect", 3), SHAPE.vocabulary)
    inputs.save(tmp_path / "inputs")
    worker = Worker("transformers", tmp_path / "model", threads=1)
    try:
        with pytest.raises(WorkerError, match="transformers: FileNotFoundError"):
            worker.run(tmp_path / "nowhere", tmp_path / "result")
        cost, result = worker.run(tmp_path / "inputs", tmp_path / "result")
        assert result["activations"].shape == (3, 3, 16)
        assert cost["seconds"] > 0 and cost["cpu_seconds"] > 0
        profile = worker.ask({"do": "profile", "folder": str(tmp_path / "inputs"), "operators": 4})["operators"]
        assert len(profile) == 4 and 0 < sum(line["share"] for line in profile) <= 1
        # In turns, compared, with the figures of each; the same worker serves.
        team = Team(tmp_path, Options(SHAPE, 1, rounds=2), {"transformers": worker}, lambda hidden: hidden.softmax(-1))
        [figures] = measure_works(team, [Work("collect", 3)])
        assert figures["tools"]["transformers"]["runs"] == 2
        assert figures["tools"]["transformers"]["difference"] == 0
        assert set(team.rates) == set(LIBRARIES) and all(rate > 0 for rate in team.rates.values())
    finally:
        worker.close()


def test_a_worker_that_cannot_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="transformers: OSError"):
        Worker("transformers", tmp_path / "nothing", threads=1)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Commands that would have made an environment; `fail` in the requirements makes pip fail."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if "venv" in command:
            (tmp_path / "venv" / "bin").mkdir(parents=True)
            (tmp_path / "venv" / "bin" / "python").touch()
            return subprocess.CompletedProcess(command, 0, "", "")
        failed = "fail" in (tmp_path / "nnterp.txt").read_text()
        return subprocess.CompletedProcess(command, int(failed), "", "ERROR: No matching distribution\n" * failed)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    monkeypatch.setattr(environments, "ENVIRONMENTS", {"nnterp": tmp_path / "venv"})
    return commands


def test_an_environment_is_made_once_for_its_requirements(pip: list[list[str]], tmp_path: Path) -> None:
    requirements = tmp_path / "nnterp.txt"
    requirements.write_text("nnterp==1.3.0\n")
    assert python_for("nnterp") == tmp_path / "venv" / "bin" / "python"
    assert len(pip) == 2
    python_for("nnterp")
    assert len(pip) == 2
    requirements.write_text("nnterp==1.4.0\n")
    python_for("nnterp")
    assert len(pip) == 4


def test_an_environment_that_cannot_be_made_is_one_line(pip: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "nnterp.txt").write_text("fail\n")
    for _ in range(2):  # it is tried again
        with pytest.raises(NoEnvironmentError, match=r"^nnterp: no environment could be made: ERROR: No matching.*$"):
            python_for("nnterp")


def figures(kind: str, length: int, ours: float, nnterp: float, needed: float, sources: int = 64) -> dict[str, Any]:
    def cost(seconds: float) -> dict[str, Any]:
        return {"seconds": seconds, "cpu_seconds": seconds, "peak_bytes": int(seconds * 1e8)}

    tools = {"interpipe": cost(ours), "nnterp": cost(nnterp)}
    work = {"kind": kind, "sources": sources, "target_length": length, "name": f"{kind} {length}"}
    return shares({**work, "tools": tools, "needed_operations": needed}, {"torch": 1e9, "onednn": 2e9}, "seconds")


def test_the_table_says_what_is_reached() -> None:
    works = [
        figures("patchscope", 18, ours=1.0, nnterp=26.0, needed=0.71e9),
        figures("patchscope", 80, ours=1.0, nnterp=99.0, needed=0.71e9),
        figures("collect", 0, ours=1.0, nnterp=1.9, needed=0.79e9),
        figures("logit_lens", 0, ours=1.0, nnterp=21.0, needed=0.6e9, sources=256),
    ]
    head, _, fast, slow, collect, lens, memory = works_table(works).splitlines()
    assert [cell.strip() for cell in head.split("|")][:2] == ["work", "against nnterp"]
    assert [cell.strip() for cell in fast.split("|")] == [
        "patchscope 18", "26.0x", "-", "-", "-", "0.71", "0.35", ">= 25x, >= 0.7", "reached",
    ]  # fmt: skip
    assert slow.endswith("SHORT") and collect.endswith("SHORT") and lens.endswith("reached")
    assert "peak memory (100 MB)" in memory and "21.0x" in memory and memory.endswith("reached")


def test_growth_is_held_against_its_limit() -> None:
    lines = [
        {"what": "prompts", "ratio": 10.2, "at_most": 10.5, "values": [1.0, 10.2]},
        {"what": "layers", "ratio": 4.3, "at_most": 4.2, "values": [1.0, 4.3]},
        {"what": "memory", "ratio": 1.1, "at_most": None, "values": [10.0, 11.0]},
    ]
    _, _, prompts, layers, memory = growth_table(lines).splitlines()
    assert prompts.endswith("reached") and layers.endswith("SHORT") and memory.strip().endswith("1.10")


def test_the_seven_billion_measurement_on_a_small_model() -> None:
    works = [Work("patchscope", 3, 9), Work("logit_lens", 3)]
    found = gpu.measure_gpu(works, shape=SHAPE, device="cpu")
    assert [work["name"] for work in found["works"]] == [work.name for work in works]
    assert all(work["share_of_peak"] > 0 and work["difference"] < gpu.TOLERANCE for work in found["works"])
    assert len(gpu.text(found).splitlines()) == 4

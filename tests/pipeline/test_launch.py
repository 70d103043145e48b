"""Between Hydra and the workflow: run folders, sweeps, failures, interrupts.

The stages are replaced by a few lines here; `test_experiments` runs the real ones.
"""

from __future__ import annotations

import contextlib
import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from interp.errors import InterpError
from pipeline.config.tracking import TrackingConfig
from pipeline.summary import lens_line, summary_lines
from pipeline.tracking.bounded import Allowance
from pipeline.workflow.run import Killed
from tests.pipeline.test_main import CommandLine, command_line

__all__ = ["command_line"]

METRICS = {
    "logit_lens": {"n": 7, "probability": {"answer": {"first": 0.1, "last": 0.9, "peak": 0.9, "peak_layer": 11}}}
}
CONFIG = ("model=gpt2", "lens=logit_lens")


@dataclass
class World:
    """What the launched jobs did."""

    runs: list[tuple[Path, dict[str, Any], list[str], dict[str, Any] | None]] = field(default_factory=list)
    tracked: list[str] = field(default_factory=list)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """The stages fail with 3 shots, break with 4, are stopped with 9, and else finish at once."""
    world = World()

    def run_job(
        params: dict[str, Any], folder: Path, *, overrides: list[str], sweep: dict[str, Any] | None
    ) -> dict[str, Any]:
        world.runs.append((folder, params, overrides, sweep))
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        (folder / "metrics.json").write_text(json.dumps(METRICS))
        shots = params["task"].get("shots")
        status = {3: "FAILED", 4: "FAILED", 9: "KILLED"}.get(shots, "FINISHED")
        (folder / "run.json").write_text(json.dumps({"status": status}))
        if shots == 3:
            raise InterpError("stage collect failed: the disk is full")
        if shots == 4:
            raise RuntimeError("a fault of the program")
        if shots == 9:
            raise Killed(signal.SIGTERM)
        return {"status": status}

    def ready_beside(config: TrackingConfig, allowance: Allowance) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    def prepare(config: TrackingConfig, allowance: Allowance) -> None:
        world.tracked.append(f"prepare {config.experiment}")

    def begin_sweep(config: TrackingConfig, sweep: dict[str, Any], allowance: Allowance) -> None:
        assert allowance.left == (4 if config.uri is None else 1) * config.timeout
        if config.enabled:
            world.tracked.append(f"begin_sweep {config.experiment} {sweep['overrides']}")

    def end_sweep(config: TrackingConfig, sweep: dict[str, Any], status: str, allowance: Allowance) -> None:
        if config.enabled:
            world.tracked.append(f"end_sweep {config.experiment} {status}")

    def log_run(folder: Path, allowance: Allowance) -> None:
        world.tracked.append(f"log {folder.name}")

    monkeypatch.setattr("pipeline.workflow.run_job", run_job)
    for call in (ready_beside, prepare, begin_sweep, end_sweep, log_run):
        monkeypatch.setattr(f"pipeline.tracking.runs.{call.__name__}", call)
    return world


def test_a_run(command_line: CommandLine, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(*CONFIG, "task.shots=2") == 0
    ((folder, params, overrides, sweep),) = world.runs
    assert folder.parent.parent == tmp_path / "outputs"
    assert (folder / ".hydra" / "config.yaml").is_file()
    assert "hydra" not in params and params["task"]["shots"] == 2
    assert overrides == [*CONFIG, "task.shots=2"] and sweep is None
    assert world.tracked == ["prepare interpipe", f"log {folder.name}"]
    shown = folder.relative_to(tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        f"run       {shown}",
        f"report    {shown}/report/index.html",
        "tracking  make ui, experiment interpipe",
        "logit_lens (7 examples): P(answer) up to 0.900 at layer 11",
    ]


def test_a_password_is_not_told(
    command_line: CommandLine, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "tracking.uri='http://me:secret@localhost:{}'"
    assert command_line(*CONFIG, uri.format(80)) == 0
    assert command_line("-m", *CONFIG, uri.format("80,x"), "hydra.sweep.dir=swept") == 2
    assert command_line("-m", *CONFIG, "task.shots=1,2", uri.format(80), "hydra.sweep.dir=swept") == 0
    (_, params, overrides, _), (*_, swept) = world.runs[0], world.runs[1]
    assert params["tracking"]["uri"] == "http://me:secret@localhost:80", "what is needed to send it"
    assert "tracking.uri='http://me:***@localhost:80'" in overrides
    assert swept is not None and set(swept["swept"]) == {"task.shots"}
    told = "".join(capsys.readouterr()) + "".join(world.tracked)
    assert "me:***@localhost" in told and "secret" not in told
    records = [path.read_text() for path in (tmp_path / "swept").rglob("*.json")]
    assert sum("me:***@" in record for record in records) == 3, "the sweep's and two jobs'"
    assert not any("secret" in record for record in records)


def test_runs_that_start_in_the_same_second(command_line: CommandLine, world: World, tmp_path: Path) -> None:
    same = "hydra.run.dir=outputs/now"
    for _ in range(3):
        assert command_line(*CONFIG, "tracking.tags={}") == 0
    folders = [folder for folder, *_ in world.runs]
    assert len(set(folders)) == 3
    # A folder that the user chose is that folder, so that a run there can go on.
    assert command_line(*CONFIG, same) == 0 and command_line(*CONFIG, same) == 0
    assert [folder for folder, *_ in world.runs[3:]] == [tmp_path / "outputs" / "now"] * 2


def test_own_folder_takes_the_next_free_name(tmp_path: Path) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from pipeline.launch import own_folder

    place = tmp_path / 'it\'s one, "two"'
    for name in (place.name, f"{place.name}-2", f"{place.name}-3"):
        config = OmegaConf.create({"hydra": {"sweep": {"dir": str(place)}, "overrides": {"hydra": []}}})
        OmegaConf.set_readonly(config, True)
        folder = own_folder(config, "sweep")
        assert folder == place.with_name(name) and folder.is_dir()
        assert config.hydra.sweep.dir == str(folder)
        (override,) = OverridesParser.create().parse_overrides(list(config.hydra.overrides.hydra))
        assert override.value() == str(folder), "the jobs of a sweep get the same folder"


def test_a_run_that_fails(command_line: CommandLine, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(*CONFIG, "task.shots=3") == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: stage collect failed: the disk is full\nrun folder: outputs/")
    assert "Traceback" not in said.err and said.out == ""
    assert [line.split()[0] for line in world.tracked] == ["prepare", "log"], "a failed run is tracked too"


def test_a_fault_of_the_program_shows_where(
    command_line: CommandLine, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(*CONFIG, "task.shots=4") == 1
    said = capsys.readouterr().err
    assert "RuntimeError: a fault of the program" in said and "Traceback" in said


def test_a_run_that_is_stopped(command_line: CommandLine, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(*CONFIG, "task.shots=9") == 128 + signal.SIGTERM
    assert capsys.readouterr().err.startswith("error: interrupted. What is finished is kept")
    assert world.tracked[-1].startswith("log ")


def test_a_sweep_goes_on_after_a_failure(
    command_line: CommandLine, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line("-m", *CONFIG, "task.shots=2,3,4,6", "task.latent_languages=[en]") == 1
    (sweep_folder,) = (tmp_path / "outputs" / "sweeps").glob("*/*")
    name = sweep_folder.relative_to(tmp_path).as_posix()
    assert [folder for folder, *_ in world.runs] == [sweep_folder / str(number) for number in range(4)]
    key = json.loads((sweep_folder / "sweep.json").read_text())["key"]
    assert [sweep for *_, sweep in world.runs] == [
        {"name": name, "key": key, "swept": {"task.shots": shots}} for shots in ("2", "3", "4", "6")
    ]
    said = capsys.readouterr()
    assert f"sweep  {name}: 2 of 4 jobs finished" in said.out
    assert said.err.endswith(
        "error: 2 of 4 jobs failed:\n"
        f"  model=gpt2 lens=logit_lens task.shots=3 task.latent_languages=[en]: {name}/1\n"
        f"  model=gpt2 lens=logit_lens task.shots=4 task.latent_languages=[en]: {name}/2\n"
    )
    overrides = "['model=gpt2', 'lens=logit_lens', 'task.shots=2,3,4,6', 'task.latent_languages=[en]']"
    assert world.tracked == [
        f"begin_sweep interpipe {overrides}", "log 0", "log 1", "log 2", "log 3", "end_sweep interpipe FAILED",
    ]  # fmt: skip


def test_a_sweep_that_finishes(command_line: CommandLine, world: World) -> None:
    assert command_line("-m", *CONFIG, "task.shots=1,2", "tracking.experiment=a,b") == 0
    assert len(world.runs) == 4
    # Each tracking that the jobs use is made ready once, in the parent, before any job.
    assert [line.rpartition(" [")[0] for line in world.tracked[:2]] == ["begin_sweep a", "begin_sweep b"]
    assert [line.split()[0] for line in world.tracked[2:6]] == ["log"] * 4
    assert world.tracked[-2:] == ["end_sweep a FINISHED", "end_sweep b FINISHED"]


def test_a_sweep_that_is_stopped(command_line: CommandLine, world: World) -> None:
    assert command_line("-m", *CONFIG, "task.shots=2,9,6") == 128 + signal.SIGTERM
    assert len(world.runs) == 2, "the jobs after it do not start"
    assert world.tracked[-1] == "end_sweep interpipe KILLED"


def test_a_launcher_that_stops(
    command_line: CommandLine, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As joblib's does where the system kills one of its workers."""

    class Dies:
        def sweep(self, arguments: list[str]) -> None:
            raise RuntimeError("a worker was killed")

    monkeypatch.setattr("hydra.core.plugins.Plugins.instantiate_sweeper", lambda *_, **__: Dies())
    assert command_line("-m", *CONFIG, "task.shots=2,3") == 1
    said = capsys.readouterr()
    assert "error: the launcher stopped (RuntimeError: a worker was killed)." in said.err
    assert said.err.count(": it did not begin") == 2 and "0 of 2 jobs finished" in said.out
    assert world.tracked[-1] == "end_sweep interpipe FAILED"


def test_tracking_that_is_off_is_left_alone(command_line: CommandLine, world: World) -> None:
    assert command_line("-m", *CONFIG, "task.shots=1,2", "tracking=off") == 0
    assert not [line for line in world.tracked if "sweep" in line]


def test_relative_paths_count_from_where_the_user_stands(
    command_line: CommandLine, world: World, tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text("prompt,target\nOne and one is,two\n")
    assert command_line("model=gpt2", "task=next_token", "task.source=mine.csv") == 0
    task = world.runs[0][1]["task"]
    assert task["source"] == task["depends_on"] == str(tmp_path / "mine.csv")


def test_summary(tmp_path: Path) -> None:
    peaks = {"a": 0.2, "b": 0.4, "c": 0.1, "d": 0.3}
    curves = {group: {"peak": peak, "peak_layer": 1} for group, peak in peaks.items()}
    assert lens_line("x", {"n": 3, "probability": curves}) == (
        "x (3 examples): P(b) up to 0.400 at layer 1, P(d) up to 0.300 at layer 1, P(a) up to 0.200 at layer 1"
    )
    agreement = {"n": 3, "probability": {}, "precision_at_1": {"peak": 0.5, "peak_layer": 2}}
    assert lens_line("x", agreement) == "x (3 examples): precision at 1 up to 0.500 at layer 2"
    assert lens_line("x", {}) == "x (0 examples): see metrics.json"
    silent = {"n": 3, "generation_accuracy": {"answer": {"peak": 0.0, "peak_layer": 0}}}
    assert lens_line("x", silent) == "x (3 examples): no text holds an answer"
    (tmp_path / "params.yaml").write_text("tracking: {enabled: false}\nlens: {x: {kind: logit_lens}}\n")
    (tmp_path / "metrics.json").write_text(json.dumps({f"lens{number}": {} for number in range(7)}))
    lines = summary_lines(tmp_path)
    assert len(lines) == 2 + 5 + 1 and lines[-1].startswith("... and 2 lenses more in ")

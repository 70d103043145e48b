"""Runs sent to a real MLflow: sqlite directly, a server, and a server that is not there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from interp.errors import InterpError
from pipeline.config.tracking import TrackingConfig
from pipeline.sweep import job_ended, new_sweep, sweep_ended
from pipeline.tracking import __main__ as main_module
from pipeline.tracking import runs as runs_module
from pipeline.tracking import sending as sending_module
from pipeline.tracking.__main__ import main
from pipeline.tracking.bounded import Mlflow
from pipeline.tracking.runs import Allowance, begin_sweep, end_sweep, log_run, prepare
from pipeline.tracking.sending import KEY_TAG, Target, connect, send, target_of, the_one, tracking_uri
from tests.pipeline.tracking.run_folders import make_run_folder, write_run


@pytest.fixture(scope="module")
def mlflow() -> Iterator[Mlflow]:
    """One process with MLflow for all questions: each would start its own, and importing MLflow is most of its time."""
    with contextlib.closing(Mlflow()) as process:
        yield process


@pytest.fixture(autouse=True)
def one_process(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "ask", mlflow.ask)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository root of its own, so that no test writes into the real one."""
    monkeypatch.setattr(sending_module, "project_root", lambda: tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with no run in it: to make its tables takes longer than all that a test asks of it."""
    place = tmp_path_factory.mktemp("database") / "tracked.db"
    connect(f"sqlite:///{place}").search_experiments()
    return place


@pytest.fixture
def config(root: Path, database: Path) -> TrackingConfig:
    shutil.copy(database, root / "tracked.db")
    return TrackingConfig(uri=f"sqlite:///{root}/tracked.db", experiment="tests")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def all_runs(config: TrackingConfig) -> list:  # type: ignore[type-arg]
    client = connect(tracking_uri(config))
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_a_run_arrives_whole_and_once(root: Path, config: TrackingConfig) -> None:
    folder = make_run_folder(root / "run", str(config.uri))
    assert log_run(folder) and log_run(folder)
    (run,) = all_runs(config)
    client = connect(tracking_uri(config))
    assert run.info.status == "FINISHED" and run.info.end_time - run.info.start_time == 10_000
    assert run.data.params["task.source_languages"] == '["de", "en"]'
    assert run.data.metrics["summary/patchscope.probability.a.peak"] == 0.75
    history = client.get_metric_history(run.info.run_id, "patchscope/probability/target_concept")
    assert [(point.step, point.value) for point in sorted(history, key=lambda p: p.step)] == [
        (0, 0.0), (1, 0.125), (2, 0.25), (3, 0.375),
    ]  # fmt: skip
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "params.yaml", "dvc.lock", "run.json", "metrics.json", "curves.parquet", "grids.parquet", "report",
    }  # fmt: skip
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == "a" * 32 + ".dir"
    assert run.data.tags["team"] == "unit" and run.data.tags["git.commit"] == "0123abc"
    assert (root / "mlartifacts").is_dir(), "artifacts lie beside the database, wherever the run was started"


def test_a_resumed_run_updates_its_record(root: Path, config: TrackingConfig) -> None:
    folder = make_run_folder(root / "run", str(config.uri), status="KILLED")
    assert log_run(folder)
    (run,) = all_runs(config)
    assert run.info.status == "KILLED" and "patchscope/probability/target_concept" not in run.data.metrics
    write_run(folder, "FINISHED")
    assert log_run(folder)
    (again,) = all_runs(config)
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"
    assert again.data.metrics["patchscope/probability/target_concept"] == 0.375


def test_a_run_whose_sending_broke_off_is_found_again(
    root: Path, config: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    folder = make_run_folder(root / "run", str(config.uri))
    broken = mlflow.MlflowClient.log_inputs

    def dies(*_: object, **__: object) -> None:
        raise ConnectionError("the server died")

    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", dies)
    with pytest.raises(ConnectionError):
        send(target_of(config), str(folder))
    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", broken)
    assert main(["sync", str(folder)]) == 0
    (run,) = all_runs(config)
    history = connect(tracking_uri(config)).get_metric_history(run.info.run_id, "patchscope/probability/target_concept")
    assert len(history) == 4, "metrics sent twice are kept once"
    assert run.info.status == "FINISHED" and len(run.inputs.dataset_inputs) == 1


def test_a_record_cut_short_costs_another_run_and_a_warning(
    root: Path, config: TrackingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_run_folder(root / "run", str(config.uri))
    assert log_run(folder)
    for number, left in enumerate(["", '{"key": "0a'], start=2):
        (folder / "tracking.json").write_text(left)
        caplog.clear()
        assert log_run(folder)
        assert "tracking.json cannot be read" in caplog.text
        assert [run.info.status for run in all_runs(config)] == ["FINISHED"] * number
    assert log_run(folder)
    assert len(all_runs(config)) == 3


SWEEP = {"name": 'it\'s one, "two"=3', "key": '/tmp/it\'s, "here"=1', "overrides": ["lens=a,b"]}


def test_a_sweep_has_one_parent_whatever_it_is_called(root: Path) -> None:
    """Apostrophes, quotes, commas and equals signs in paths, in the sweep's name and in the experiment's."""
    place = root / "it's, a=b"
    config = TrackingConfig(uri=f"sqlite:///{place}/tracked.db", experiment='it\'s "one", x=1')
    assert begin_sweep(config, SWEEP, Allowance(config, place))
    for lens in ("a", "b"):
        sweep = {"name": SWEEP["name"], "key": SWEEP["key"], "swept": {"lens": lens}}
        folder = make_run_folder(
            place / f"lens={lens},it's", str(config.uri), sweep=sweep, experiment=config.experiment
        )
        assert log_run(folder)
    end_sweep(config, SWEEP, "FAILED", Allowance(config, place))
    client = connect(tracking_uri(config))
    experiment = client.get_experiment_by_name(config.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "interpipe.sweep" in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {child.info.run_name for child in children} == {"lens=a", "lens=b"} and len(runs) == 3
    assert parent.info.status == "FAILED" and parent.data.tags["overrides"] == "lens=a,b"
    assert parent.info.run_name == SWEEP["name"]


def test_sync_closes_a_sweep_that_could_not_be_closed(
    root: Path,
    config: TrackingConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its server was gone from the first job on; one run is synced, then the whole sweep."""
    monkeypatch.setattr(main_module, "project_root", lambda: root)
    folder = root / "outputs/it's"
    folder.mkdir(parents=True)
    sweep = new_sweep(folder, "outputs/it's", ["lens=a,b"], [])
    places = []
    for number, lens in enumerate("ab"):
        record = {"name": sweep["name"], "key": sweep["key"], "swept": {"lens": lens}}
        places.append(make_run_folder(folder / f"{number}", str(config.uri), sweep=record))
        job_ended(folder, number, [f"lens={lens}"], places[-1], finished=True)
    nothing = Allowance(config, folder)
    nothing.spend(1000)
    end_sweep(config, sweep, "FAILED", nothing)
    assert "python -m pipeline.tracking sync 'outputs/it'\"'\"'s'" in caplog.text

    def statuses() -> dict[str, str]:
        return {run.info.run_name: run.info.status for run in all_runs(config)}

    assert main(["sync", str(places[0])]) == 0
    assert statuses() == {"outputs/it's": "RUNNING", "lens=a": "FINISHED"}, "nobody has said that the sweep is over"
    sweep_ended(folder, "FAILED")
    assert main(["sync", str(places[0])]) == 0, "the run is there already; its sweep is closed"
    assert statuses() == {"outputs/it's": "FAILED", "lens=a": "FINISHED"}
    ended = {run.info.run_name: run.info.end_time for run in all_runs(config)}
    capsys.readouterr()
    assert main(["sync", str(folder)]) == 0
    assert statuses() == {"outputs/it's": "FAILED", "lens=a": "FINISHED", "lens=b": "FINISHED"}
    assert {run.info.run_name: run.info.end_time for run in all_runs(config)}.items() >= ended.items()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and said[-1] == f"{folder}: the sweep is FAILED at {config.uri}"


def test_a_password_is_sent_nowhere(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret, port = "geh:e@im", free_port()
    config = TrackingConfig(uri=f"http://me:{secret}@127.0.0.1:{port}", experiment="tests", timeout=5)
    folder = make_run_folder(root / "run", str(config.uri))
    assert not prepare(config, Allowance(config)) and not log_run(folder)
    assert caplog.text.count(f"http://me:***@127.0.0.1:{port}") >= 2 and secret not in caplog.text
    assert json.loads((folder / "tracking.json").read_text())["uri"] == f"http://me:***@127.0.0.1:{port}"
    reached = Target(f"sqlite:///{root}/tracked.db", "tests", str(root))
    send(reached, str(folder))
    files = [path for path in (root / "mlartifacts").rglob("*") if path.is_file()]
    assert "params.yaml" in {path.name for path in files}
    assert not [path for path in files if secret in path.read_text(errors="replace")]
    assert secret.encode() not in (root / "tracked.db").read_bytes()
    assert secret in (folder / "params.yaml").read_text(), "the run folder's own can still be sent"


def test_of_runs_that_are_made_at_once_one_stays(root: Path, config: TrackingConfig) -> None:
    assert prepare(config, Allowance(config))
    client = connect(tracking_uri(config))
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None

    def make(tags: dict[str, str]) -> str:
        """As when two others have looked, found nothing, and made theirs, before this one makes its own."""
        for start in (1, 2):
            client.create_run(experiment.experiment_id, start_time=start, tags=tags)
        return str(client.create_run(experiment.experiment_id, start_time=3, tags=tags).info.run_id)

    found = the_one(client, experiment.experiment_id, KEY_TAG, "it's a key", make)
    assert client.get_run(found).info.start_time == 1
    assert the_one(client, experiment.experiment_id, KEY_TAG, "it's a key", make) == found
    assert len(all_runs(config)) == 2, "this one took its own back; the other process takes back its own"


def test_a_database_is_made_once_by_many_at_once(root: Path) -> None:
    script = (
        "import pathlib, sys\n"
        "from pipeline.tracking import runs, sending\n"
        "from pipeline.config.tracking import TrackingConfig\n"
        "sending.project_root = lambda: pathlib.Path(sys.argv[1])\n"
        "config = TrackingConfig(experiment='tests')\n"
        "assert runs.prepare(config, runs.Allowance(config))\n"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", script, str(root)]) for _ in range(4)]
    assert [job.wait(timeout=120) for job in jobs] == [0, 0, 0, 0]
    assert all_runs(TrackingConfig(uri=f"sqlite:///{root}/mlflow.db")) == []


def test_a_server_that_is_down_costs_a_warning(
    root: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    config = TrackingConfig(uri=uri, experiment="tests", timeout=1)
    assert not prepare(config, Allowance(config))
    folder = make_run_folder(root / "run ünï", uri)
    assert not log_run(folder)
    assert f"python -m pipeline.tracking sync '{folder}'" in caplog.text
    assert json.loads((folder / "tracking.json").read_text())["sent"] is None
    assert main(["sync", str(folder)]) == 1 and "not sent" in capsys.readouterr().err


def test_sync_of_no_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", str(tmp_path)]) == 1
    assert "A stage runs in a run folder" in capsys.readouterr().err
    with pytest.raises(InterpError):
        log_run(tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real tracking server on a port of its own."""
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
            "--artifacts-destination", str(tmp_path / "artifacts"),
        ],
        cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    uri = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=5):
                break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "the tracking server did not start"
            time.sleep(0.3)
    yield uri, process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_that_dies_is_synced_later(root: Path, server: tuple[str, subprocess.Popen[bytes]]) -> None:
    uri, process = server
    config = TrackingConfig(uri=uri, experiment="tests", timeout=5)
    assert prepare(config, Allowance(config))
    first, second = make_run_folder(root / "first", uri), make_run_folder(root / "second", uri)
    assert log_run(first)
    (run,) = all_runs(config)
    assert {file.path for file in connect(tracking_uri(config)).list_artifacts(run.info.run_id)} >= {
        "report",
        "metrics.json",
    }
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not log_run(second)

"""What a tracking server may cost: servers on loopback that hang where one can hang, and one that answers.

A bound that holds against a server that would hang for ever is what is tested, not how fast anything is.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking import runs as runs_module
from pipeline.tracking import sending as sending_module
from pipeline.tracking.__main__ import main
from pipeline.tracking.bounded import Allowance, TrackingFailed
from pipeline.tracking.runs import begin_sweep, end_sweep, log_run, prepare
from tests.pipeline.tracking.run_folders import make_run_folder

SECONDS = 2  # that each of these servers may cost
SLACK = 20  # for a busy machine to notice that they are over
INFO = {"run_id": "r", "run_uuid": "r", "experiment_id": "1", "status": "RUNNING", "lifecycle_stage": "active"}
SWEEP = {"name": "s", "key": "k", "overrides": []}


class Fake(ThreadingHTTPServer):
    """An MLflow server that knows one run, and hangs from a call on.

    Attributes:
        hangs_at: the number of the first call that gets no answer; None: all get one.
        drips: whether it then sends one byte after the other, for ever, where it would be silent.
        calls: (path, body) of each call.
    """

    daemon_threads = True

    def __init__(self, artifacts: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.artifacts = artifacts
        self.hangs_at: int | None = None
        self.drips = False
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Fake
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0].rpartition("/mlflow/")[2]
        self.server.calls.append((path, json.loads(body) if body else {}))
        if self.server.hangs_at is not None and len(self.server.calls) > self.server.hangs_at:
            if self.server.drips:
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
            while not self.server.over.wait(0.05):
                if self.server.drips:
                    try:
                        self.wfile.write(b" ")
                    except OSError:
                        break
            self.close_connection = True
            return
        experiment = {"experiment_id": "1", "name": "tests", "lifecycle_stage": "active"}
        run = {"info": {**INFO, "artifact_uri": self.server.artifacts.as_uri()}, "data": {}}
        said = {"experiments/get-by-name": {"experiment": experiment}, "runs/create": {"run": run},
                "runs/get": {"run": run}, "runs/update": {"run_info": INFO}}.get(path, {})  # fmt: skip
        content = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = answer


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr(sending_module, "project_root", lambda: tmp_path)
    server = Fake(tmp_path / "artifacts")
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def test_a_server_that_hangs_at_a_call(fake: Fake, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run is left to `sync`, which sends all of it once the server answers."""
    order = [
        "experiments/get-by-name", "runs/search", "runs/create", "runs/search", "runs/log-batch", "runs/log-batch",
        "runs/log-batch", "runs/log-inputs",
    ]  # fmt: skip
    folder = make_run_folder(tmp_path / "run", fake.uri, timeout=SECONDS)
    for call in (0, 2, 5):
        fake.calls.clear()
        fake.hangs_at = call
        hung(folder, caplog)
        assert [path for path, _ in fake.calls] == order[: call + 1]
    assert not (tmp_path / ".interpipe" / "locks").exists(), "no lock is held while a server is asked"
    fake.calls.clear()
    fake.hangs_at = None
    assert main(["sync", str(folder), "--seconds", "60"]) == 0
    assert [path for path, _ in fake.calls][: len(order)] == order and fake.calls[-1][0] == "runs/update"
    assert fake.calls[-1][1]["status"] == "FINISHED"
    assert {"key": "model.name", "value": "tiny"} in fake.calls[5][1]["params"]
    assert (fake.artifacts / "metrics.json").read_bytes() == (folder / "metrics.json").read_bytes()
    assert json.loads((folder / "tracking.json").read_text())["run_id"] == "r"


def hung(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Log a run to a server that hangs: it costs what it may, and a warning that says how to send it later."""
    caplog.clear()
    started = time.monotonic()
    allowance = Allowance(TrackingConfig(uri="http://127.0.0.1", timeout=SECONDS))
    assert not log_run(folder, allowance)
    assert allowance.left == 0
    assert time.monotonic() - started < 120 + SECONDS + SLACK
    assert f"no answer within {SECONDS} s" in caplog.text
    assert f"python -m pipeline.tracking sync {folder}" in caplog.text


def test_a_server_that_drips_bytes(fake: Fake, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each byte comes within every limit of a library; the answer never ends."""
    fake.hangs_at, fake.drips = 1, True
    hung(make_run_folder(tmp_path / "run", fake.uri, timeout=SECONDS), caplog)


def test_a_server_that_lets_nobody_in(fake: Fake, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A queue of connections that is full: the system answers nothing, so that connecting itself hangs."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
        hung(make_run_folder(tmp_path / "run", uri, timeout=SECONDS), caplog)
        for one in waiting:
            one.close()


def test_a_sweep_waits_once(fake: Fake, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Eight jobs, a server that hangs from their first run on: what one job waited is not waited again."""
    config = TrackingConfig(uri=fake.uri, experiment="tests", timeout=30)
    assert begin_sweep(config, SWEEP, Allowance(config, tmp_path))
    fake.hangs_at = len(fake.calls)
    left = Allowance(config, tmp_path).left
    assert 0 < left < 30, "making the sweep's parent has cost something"
    Allowance(config, tmp_path).spend(left - SECONDS)
    for number in range(8):
        folder = make_run_folder(tmp_path / str(number), fake.uri, timeout=30, sweep={**SWEEP, "swept": {}})
        assert not log_run(folder, Allowance(config, tmp_path))
    end_sweep(config, SWEEP, "FINISHED", Allowance(config, tmp_path))
    assert len(fake.calls) == fake.hangs_at + 1, "the other seven, and the end, did not ask"
    assert caplog.text.count("no answer within") == 1 and caplog.text.count("did not take the run") == 8
    assert "the sweep's parent run could not be closed (it has cost this run or its sweep all the time" in caplog.text


def test_mlflow_that_cannot_be_loaded_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mlflow.py").write_text("raise ImportError('half of it is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert not log_run(make_run_folder(tmp_path / "run", "http://127.0.0.1:1"))
    assert "did not take the run (half of it is missing)" in caplog.text


def test_what_a_sweep_waits_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one job of a sweep waits for is taken from all others, also from those that have begun already."""
    config = TrackingConfig(uri="http://127.0.0.1:1")
    waited: list[float] = []

    def hangs(target: object, action: str, arguments: object, seconds: float) -> None:
        waited.append(seconds)
        raise TrackingFailed("hangs", seconds)

    monkeypatch.setattr(runs_module, "ask", hangs)
    for number, allowance in enumerate([Allowance(config, tmp_path) for _ in range(8)]):
        assert not log_run(make_run_folder(tmp_path / str(number), str(config.uri)), allowance)
    assert waited == [15]
    own = Allowance(config)  # a run by itself has its own time, which its beginning and its end share
    assert not prepare(config, own) and not log_run(tmp_path / "0", own)
    assert waited == [15, 15]

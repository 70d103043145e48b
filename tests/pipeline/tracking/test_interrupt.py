"""Ctrl-C on a real run: what is finished stays, MLflow says KILLED, and the same folder goes on to FINISHED."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.sending import connect
from tests.pipeline.workflow.miniature import hear_signals

PATIENCE = 120  # seconds


def test_an_interrupted_run_is_killed_in_mlflow_and_goes_on(repository: Path) -> None:
    folder, tracked = repository / "outputs" / "interrupted", repository / "interrupted"
    tracked.mkdir()
    config = TrackingConfig(uri=f"sqlite:///{tracked}/mlflow.db")
    command = [
        sys.executable, "-m", "pipeline", "debug=tiny", "experiment=wendler_translation", "task.shots=3",
        "tracking=default", f"tracking.uri={config.uri}", f"hydra.run.dir={folder}",
    ]  # fmt: skip
    run = subprocess.Popen(
        command, cwd=repository, start_new_session=True, preexec_fn=hear_signals, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline, lock = time.monotonic() + PATIENCE, folder / "dvc.lock"
    while not (lock.exists() and "tokens/prompts" in lock.read_text()):  # tokenize is done and kept; collect is next
        assert run.poll() is None, run.stderr and run.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130, said
    assert "Traceback" not in said

    def statuses() -> list[str]:
        client = connect(str(config.uri))
        experiment = client.get_experiment_by_name(config.experiment)
        assert experiment is not None
        return [found.info.status for found in client.search_runs([experiment.experiment_id])]

    assert json.loads((folder / "run.json").read_text())["status"] == "KILLED"
    assert statuses() == ["KILLED"]
    again = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert statuses() == ["FINISHED"]
    assert json.loads((folder / "run.json").read_text())["stages"]["tokenize"]["cached"]

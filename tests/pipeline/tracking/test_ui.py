"""A real sweep, one job of which cannot be finished, and MLflow's own page on it, with the layer curves of the others
laid over each other."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.sending import connect
from tests.pipeline.conftest import Run

METRIC = "logit_lens/probability/answer"
Found = TypeVar("Found")
PATIENCE = 90  # seconds; a page that never comes fails, a slow machine does not


def wait_for(what: str, look: Callable[[], Found]) -> Found:
    """Look again and again until something is found."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            found = look()
        except OSError:
            found = None
        if found:
            return found
        assert time.monotonic() < deadline, f"no {what} within {PATIENCE} s"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def swept(repository: Path, pipeline: Run) -> tuple[TrackingConfig, subprocess.CompletedProcess[str]]:
    """The tracking of a real sweep of three runs, and how its command ended."""
    uri = f"sqlite:///{repository}/ui/mlflow.db"
    (repository / "ui").mkdir()
    # 170 solved lines are more than the model reads at once, which only tokenizing can tell.
    ran = pipeline(
        "-m", "experiment=wendler_translation", "lens=logit_lens", "task.shots=1,170,2", "debug=tiny",
        "tracking=default", f"tracking.uri={uri}", f"hydra.sweep.dir={repository}/outputs/ui",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    return TrackingConfig(uri=uri), ran


@pytest.fixture(scope="module")
def page(swept: tuple[TrackingConfig, object]) -> Iterator[str]:
    """The address of MLflow's server on that sweep."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", str(swept[0].uri),
        ],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for("server", lambda: urllib.request.urlopen(f"{address}/health", timeout=5).close() is None)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_sweep_survives_a_job(
    repository: Path, swept: tuple[TrackingConfig, subprocess.CompletedProcess[str]]
) -> None:
    folder, ran = repository / "outputs" / "ui", swept[1]
    assert ran.returncode == 1, ran.stderr
    runs = [json.loads((folder / str(number) / "run.json").read_text(encoding="utf-8")) for number in range(3)]
    assert [run["status"] for run in runs] == ["FINISHED", "FAILED", "FINISHED"]
    assert "2 of 3 jobs finished" in ran.stdout
    last = ran.stderr[ran.stderr.rindex("error: 1 of 3 jobs failed:") :]
    assert "outputs/ui/1" in last and "outputs/ui/0" not in last and "outputs/ui/2" not in last


def test_the_chart_page_shows_the_curves_of_both_runs(
    swept: tuple[TrackingConfig, object], page: str, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    tracking, _ = swept
    client = connect(str(tracking.uri))
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "interpipe.sweep" in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    ended = {run.data.params["task.shots"]: run.info.status for run in children}
    assert ended == {"1": "FINISHED", "170": "FAILED", "2": "FINISHED"}
    assert {run.info.run_name for run in children} == {"task.shots=1", "task.shots=170", "task.shots=2"}
    for run in (run for run in children if run.info.status == "FINISHED"):
        layers = sorted(point.step for point in client.get_metric_history(run.info.run_id, METRIC))
        assert layers == list(range(len(layers)))
        assert len(layers) == 8

    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})  # other tests' phones
    browser.set_window_size(1800, 1300)
    browser.get(f"{page}/#/experiments/{experiment.experiment_id}/runs?compareRunsMode=CHART")
    name = str(parent.info.run_name)
    link = wait_for("parent run", lambda: browser.find_elements(By.XPATH, f"//a[normalize-space()='{name}']"))[0]
    # the runs of a sweep are folded under their parent
    link.find_element(By.XPATH, "ancestor::*[@role='row'][1]").find_element(By.TAG_NAME, "button").click()

    def drawn() -> str | None:
        """The text of the chart of the metric, once it has a line for both runs."""
        for chart in browser.find_elements(By.CSS_SELECTOR, ".js-plotly-plot"):
            card = chart.find_element(By.XPATH, f"ancestor::*[contains(., '{METRIC}')][1]")
            lines = [
                path for path in chart.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace path.js-line")
                if len(str(path.get_attribute("d")).split("L")) == 8
            ]  # fmt: skip
            if len(lines) >= 2 and all(f"task.shots={shots} ({METRIC})" in card.text for shots in (1, 2)):
                return card.text
        return None

    assert wait_for("chart with both curves", drawn)
    assert browser.save_screenshot(str(tmp_path / "chart.png"))

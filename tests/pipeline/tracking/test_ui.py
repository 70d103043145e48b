"""MLflow's own page on a real sweep: its chart view lays the layer curves of both runs over each other."""

from __future__ import annotations

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
def swept(repository: Path, pipeline: Run) -> TrackingConfig:
    """The tracking of a real sweep of two runs."""
    uri = f"sqlite:///{repository}/ui/mlflow.db"
    (repository / "ui").mkdir()
    ran = pipeline(
        "-m", "experiment=wendler_translation", "lens=logit_lens", "task.shots=1,2", "debug=tiny", "tracking=default",
        f"tracking.uri={uri}", f"hydra.sweep.dir={repository}/outputs/ui",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return TrackingConfig(uri=uri)


@pytest.fixture(scope="module")
def page(swept: TrackingConfig) -> Iterator[str]:
    """The address of MLflow's server on that sweep."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", str(swept.uri),
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


def test_the_chart_page_shows_the_curves_of_both_runs(
    swept: TrackingConfig, page: str, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    client = connect(str(swept.uri))
    experiment = client.get_experiment_by_name(swept.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "interpipe.sweep" in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.data.params["task.shots"] for run in children} == {"1", "2"}
    assert {run.info.run_name for run in children} == {"task.shots=1", "task.shots=2"}
    for run in children:
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

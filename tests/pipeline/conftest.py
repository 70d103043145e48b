"""Fixtures that the tests of the pipeline share."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from pipeline.project import CODE
from tests.pipeline.copies import copy_code

PROGRAMS = ("chromium", "chromedriver")
# without these it asks for hosts on the network at every start
QUIET = ("disable-quic", "disable-background-networking", "disable-component-update", "disable-sync")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's code, so that its cache, its locks and its tracking are the tests' own."""
    copy = tmp_path_factory.mktemp("repository")
    for folder in ("conf", "interp", "pipeline"):
        copy_code(CODE / folder, copy / folder)
    (copy / ".dvc").mkdir()
    for file in ("dvc.yaml", ".dvcignore", ".dvc/config"):
        shutil.copy(CODE / file, copy / file)
    return copy


@pytest.fixture(scope="session")
def pipeline(repository: Path) -> Run:
    """`pipeline(*arguments)`: the command `python -m pipeline ARGUMENTS` in the copy of the repository."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline", *arguments]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A headless Chromium with a profile of its own."""
    paths = {name: shutil.which(name) for name in PROGRAMS}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        pytest.fail(f"not installed: {', '.join(missing)}. `apt-get install chromium chromium-driver` installs both.")
    options = webdriver.ChromeOptions()
    options.binary_location = str(paths["chromium"])
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run", *QUIET):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument("--window-size=1200,1600")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(paths["chromedriver"])))
    try:
        yield driver
    finally:
        driver.quit()

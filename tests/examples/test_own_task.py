"""The example of a task, a metric and a figure of one's own: as an installed package, in a sweep, and changed later."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.tokens import load_tokens
from pipeline.project import CODE
from pipeline.stages.evaluate.tables import read_curves
from pipeline.store import open_store
from tests.examples.projects import edit, record, run

CHOSEN = ("debug=tiny", "task=opposites")
MODULES = ["opposites.figure", "opposites.metric", "opposites.task"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, whose cache and runs are the tests' own."""
    return Path(shutil.copytree(CODE / "examples/own_task", tmp_path_factory.mktemp("example") / "own_task"))


@pytest.fixture(scope="module")
def packages(home: Path) -> Path:
    """A folder of installed packages, to which the example's has moved, with what an installer writes beside it."""
    folder = home.parent / "packages"
    (folder / "opposites-0.1.dist-info").mkdir(parents=True)
    points = tomllib.loads((home / "pyproject.toml").read_text())["project"]["entry-points"]["interpipe.plugins"]
    lines = ["[interpipe.plugins]", *(f"{name} = {module}" for name, module in points.items())]
    (folder / "opposites-0.1.dist-info/entry_points.txt").write_text("\n".join(lines))
    (folder / "opposites-0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: opposites\nVersion: 0.1\n")
    shutil.move(home / "opposites", folder)
    return folder


def means(folder: Path) -> list[float]:
    """The metric by layer, as a run's tables have it."""
    rows = [row for row in read_curves(folder / "curves.parquet") if row.metric == "log_odds"]
    return [row.mean for row in rows if row.mean is not None]


def test_an_installed_package_in_a_sweep_and_changed_later(home: Path, packages: Path) -> None:
    swept = run(home, "-m", *CHOSEN, "evaluate.confidence=0.9,0.95", "hydra.sweep.dir=outputs/sweep", packages=packages)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    jobs = [home / "outputs/sweep" / name for name in ("0", "1")]
    first, second = [record(job) for job in jobs]
    assert sorted(first["plugins"]) == MODULES and first["plugins"] == second["plugins"]
    assert {name for name, stage in second["stages"].items() if not stage["cached"]} == {"evaluate", "report"}

    # the task
    rows = load_tokens(jobs[0] / "tokens").prompts
    assert [row.prompt for row in rows][:2] == ["big - small\ngood - bad\nhot -", "good - bad\nnew - old\nbig -"]
    assert rows[0].words == {"opposite": ["cold"], "word": ["hot"]} and rows[0].labels["word"] == "hot"
    # the metric
    store = open_store(jobs[1] / "lens.zarr/logit_lens")
    log_prob = store.read("log_prob")[..., [store.attributes["groups"].index(name) for name in ("opposite", "word")]]
    expected = np.diff(-log_prob.astype(float), axis=-1)[..., 0].mean(axis=0)
    np.testing.assert_allclose(means(jobs[1]), expected, rtol=1e-6)
    assert means(jobs[0]) == means(jobs[1])
    # its panel, and the figure
    page = (jobs[1] / "report/index.html").read_text(encoding="utf-8")
    assert "of the opposite against the word itself" in page, "the metric's panel"
    assert (
        "Log odds of each word in nats over layers 0 to 7. hot: " in page and "the opposites of the words in " in page
    )

    for name in ("task", "figure", "metric"):
        edit(packages / f"opposites/{name}.py", "from __future__", "# A comment means nothing.\nfrom __future__")
    edit(packages / "opposites/metric.py", "SCALE = 1.0", "SCALE = 2.0")
    ran = run(home, *CHOSEN, "evaluate.confidence=0.95", "hydra.run.dir=outputs/later", packages=packages)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    stages = record(home / "outputs/later")["stages"]
    assert {name for name, stage in stages.items() if not stage["cached"]} == {"evaluate", "report"}
    assert stages["evaluate"]["changed_code"] == ["opposites.metric"]
    assert "computed again for changes in opposites.metric" in ran.stdout + ran.stderr
    np.testing.assert_allclose(means(home / "outputs/later"), 2 * expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.shots=6", "task.shots: expected less than the 6 pairs of "),
        ("task.source=none.txt", "task.source: expected a file with two words a line at "),
        (
            "task.target_policy=firs_token",
            "task.target_policy: expected one of first_token, all_prefixes, exact, got 'firs_token'",
        ),
    ],
)
def test_its_config_is_checked_as_ours_are(override: str, message: str, home: Path, packages: Path) -> None:
    ran = run(home, *CHOSEN, override, packages=packages)
    assert ran.returncode == 2 and message in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr

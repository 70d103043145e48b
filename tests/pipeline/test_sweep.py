"""Real sweeps by the command line, wherever Hydra lets their jobs run; one stage that takes no time stands for all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.project import CODE
from tests.pipeline.copies import copy_code
from tests.pipeline.test_main import CommandLine, command_line

__all__ = ["command_line"]

STAGES = """
stages:
  report:
    cmd: >-
      python -c "import yaml; title = yaml.safe_load(open('params.yaml'))['report']['title'];
      open('metrics.json', 'w').write('{}') if title != 'bad' else exit('a bad title')"
    params: [report]
    outs: [metrics.json]
"""
# A sweeper that chooses its jobs as it goes, as Optuna's does, and a launcher that is not one of Hydra's own.
PLUGIN = """
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

class Elsewhere(BasicLauncher):
    pass

class Chooser(Sweeper):
    def __init__(self, max_batch_size=None, params=None):
        pass

    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        for number in range(2):
            self.launcher.launch([[*arguments, f"task.shots={number + 1}"]], initial_job_idx=number)
"""
OWN = ("hydra.sweeper._target_=hydra_plugins.own.Chooser", "hydra.launcher._target_=hydra_plugins.own.Elsewhere")
ODD = "outputs/it's, a=b"
QUOTED = f"'{ODD}'".replace("it's", r"it\'s")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with one stage, which fails on the title `bad`."""
    root = tmp_path_factory.mktemp("sweeps") / "interpipe"
    for name in ("conf", "interp", "pipeline"):
        copy_code(CODE / name, root / name)
    for name in (".dvcignore", ".dvc/config"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(CODE / name, root / name)
    (root / "dvc.yaml").write_text(STAGES)
    (root / "hydra_plugins").mkdir()
    (root / "hydra_plugins/own.py").write_text(PLUGIN)
    return root


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline` on the embedded model, untracked."""
    command = [sys.executable, "-m", "pipeline", *arguments, "lens=logit_lens", "tracking=off"]
    environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(root.with_name("site")), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def status(folder: Path) -> str:
    said = json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"]
    assert isinstance(said, str)
    return said


@pytest.mark.parametrize(
    ("name", "arguments", "folders"),
    [
        (
            "outputs/named",
            ("hydra.sweep.dir=outputs/named", "hydra.sweep.subdir=${hydra.job.override_dirname}", "task.shots=1,2"),
            ("lens=logit_lens,task.shots=1,tracking=off", "lens=logit_lens,task.shots=2,tracking=off"),
        ),
        (
            ODD,
            (
                f"hydra.sweep.dir={QUOTED}", "hydra.sweep.subdir='n,o=${hydra:job.num}'", "hydra.job.chdir=true",
                "hydra.output_subdir=null", "hydra/job_logging=disabled", "task.shots=1,2",
            ),
            ("n,o=0", "n,o=1"),
        ),
        (
            "outputs/joblib",
            (
                "hydra.sweep.dir=outputs/joblib", "hydra.sweep.subdir=shots-${task.shots}", "hydra/launcher=joblib",
                "hydra.launcher.n_jobs=2", "hydra.job.chdir=true", "task.shots=1,2",
            ),
            ("shots-1", "shots-2"),
        ),
        ("outputs/own", ("hydra.sweep.dir=outputs/own", "hydra/job_logging=none", *OWN), ("0", "1")),
    ],
    ids=["override_dirname", "odd names, no logging", "joblib", "own sweeper and launcher"],
)  # fmt: skip
def test_jobs_are_found_where_they_ran(
    name: str, arguments: tuple[str, ...], folders: tuple[str, ...], copy: Path
) -> None:
    ran = run(copy, "-m", *arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"sweep  {name}: 2 of 2 jobs finished" in ran.stdout
    for number, folder in enumerate(folders):
        assert status(copy / name / folder) == "FINISHED"
        assert f"run       {name}/{folder}\n" in ran.stdout, "as the user would type it, also where the job has moved"
        record = json.loads((copy / name / folder / "run.json").read_text(encoding="utf-8"))
        assert record["sweep"]["name"] == name
        assert record["sweep"]["swept"]["task.shots"] == str(number + 1)
    assert (copy / name / folders[0] / ".hydra").exists() == ("hydra.output_subdir=null" not in arguments)


def test_a_job_that_fails_is_named_by_its_folder(copy: Path) -> None:
    sweep = ("hydra.sweep.dir=outputs/failed", "hydra.sweep.subdir=title-${report.title}", "report.title=good,bad")
    ran = run(copy, "-m", *sweep)
    assert ran.returncode == 1
    assert "sweep  outputs/failed: 1 of 2 jobs finished" in ran.stdout
    assert ran.stderr.endswith(
        "error: 1 of 2 jobs failed:\n  report.title=bad lens=logit_lens tracking=off: outputs/failed/title-bad\n"
    )
    assert [status(copy / "outputs/failed" / f"title-{title}") for title in ("good", "bad")] == ["FINISHED", "FAILED"]
    # Mended and started again in the same folder, it forgets who failed.
    assert "2 of 2 jobs finished" in run(copy, "-m", *sweep[:2], "report.title=good,better").stdout


def test_a_run_that_moves_and_logs_nothing(copy: Path) -> None:
    folder = f"hydra.run.dir={QUOTED[:-1]}/run'"
    ran = run(copy, folder, "hydra.job.chdir=true", "hydra.output_subdir=null", "hydra/job_logging=disabled")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"run       {ODD}/run\n") and status(copy / ODD / "run") == "FINISHED"


def test_another_machine_may_have_what_this_one_has_not(copy: Path) -> None:
    """Only a launcher that runs jobs here can tell beforehand that there is no such device."""
    asked = ("model.device_map=cuda:99", "hydra.sweep.dir=outputs/device", "task.shots=1,2")
    ran = run(copy, "-m", *asked)
    assert ran.returncode == 2 and "2 of 2 jobs cannot be run, so none was started" in ran.stderr
    assert not (copy / "outputs/device").exists()
    ran = run(copy, "-m", *asked, OWN[1])
    assert ran.returncode == 1 and "sweep  outputs/device: 0 of 2 jobs finished" in ran.stdout
    assert ran.stderr.count("error: model.device_map: expected a device of this machine, got cuda:99") == 2
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("subdir", "message"),
    [
        ("same", "hydra.sweep.subdir: expected a folder for each job, got 'same' for jobs 0 and 1."),
        (f"{'x' * 300}-${{hydra:job.num}}", "hydra.sweep.subdir: expected names of at most 255 bytes"),
    ],
    ids=["shared", "too long"],
)
def test_jobs_without_a_folder_of_their_own(
    subdir: str, message: str, command_line: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line("-m", "model=gpt2", "task.shots=1,2", f"hydra.sweep.subdir={subdir}") == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == [], "nothing is started"

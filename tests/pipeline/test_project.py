"""A project of the user's own: where it is found, how it is made, and a run in one from a wheel, without a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from interp.errors import InterpError
from pipeline import cli, project
from pipeline.cli import make_project
from pipeline.project import CODE, MARKER, find_project, project_root, shipped, state_folder
from pipeline.workflow.run_folder import prepare

BUILT = ("conf", "interp", "pipeline")
BESIDE = (".dvcignore", "LICENSE", "README.md", "dvc.yaml", "params.yaml", "pyproject.toml", "setup.py")


def test_the_nearest_project_from_a_folder_upward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outer/inner/deep").mkdir(parents=True)
    (tmp_path / "outer" / MARKER).touch()
    assert find_project(tmp_path / "outer/inner/deep") == tmp_path / "outer"
    (tmp_path / "outer/inner" / MARKER).touch()
    assert find_project(tmp_path / "outer/inner/deep") == tmp_path / "outer/inner"
    assert find_project(CODE / "pipeline/stages") == CODE, "a checkout is one"
    assert find_project(tmp_path) == CODE, "also of whoever stands in no project"
    monkeypatch.chdir(tmp_path / "outer")
    assert (project_root(), state_folder()) == (tmp_path / "outer", tmp_path / "outer/.interpipe")


def test_installed_code_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "DATA", tmp_path / "_data")
    (tmp_path / "_data/conf").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert shipped("conf") == tmp_path / "_data/conf"
    with pytest.raises(InterpError, match=r"expected a project: interpipe\.toml in .* make one: interpipe new FOLDER"):
        project_root()
    assert not state_folder().is_relative_to(CODE), "nothing is written where the code is"


def test_a_run_folder_anywhere_knows_its_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_project(tmp_path / "mine")
    monkeypatch.chdir(home)
    outside, inside = prepare(tmp_path / "elsewhere/run", {"a": {"b": 1}}), prepare(home / "outputs/run", {})
    assert find_project(outside) == find_project(inside) == home
    assert os.readlink(inside / ".dvc/project") == "../../..", "a project can be moved with its runs"
    assert f"dir = {home}/.dvc/cache" in (outside / ".dvc/config").read_text()
    monkeypatch.chdir(tmp_path)  # gone on with from where there is no project
    assert find_project(prepare(outside, {"a": {"b": 1}})) == home
    for name in ("interp", "pipeline"):
        assert (outside / name).samefile(CODE / name)


def test_a_project_is_made_once_and_mended_later(tmp_path: Path) -> None:
    home = make_project(tmp_path / "a new/project")
    assert {path.name for path in home.iterdir()} == {
        MARKER, "README.md", "conf", "dvc.yaml", "params.yaml", "interp", "pipeline",
        ".dvc", ".dvcignore", ".gitignore",
    }  # fmt: skip
    assert "no_scm = true" in (home / ".dvc/config").read_text()
    (home / "README.md").write_text("mine")
    (home / "params.yaml").write_text("mine")
    (home / "dvc.yaml").write_text("of an older version")
    shutil.rmtree(home / "conf/experiment")
    (home / "pipeline").unlink()
    (home / "pipeline").symlink_to(tmp_path / "gone")
    assert make_project(home) == home
    assert (home / "README.md").read_text() == (home / "params.yaml").read_text() == "mine"
    assert list((home / "conf").iterdir()) == [], "what the user threw away stays away"
    assert (home / "dvc.yaml").read_text() == shipped("dvc.yaml").read_text()
    assert (home / "pipeline").samefile(CODE / "pipeline")


def test_a_project_in_a_repository_of_git(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert "no_scm = false" in (make_project(tmp_path) / ".dvc/config").read_text()


def test_where_no_project_can_be(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match="where Interpipe's code lies"):
        make_project(CODE)
    (tmp_path / "taken/interp").mkdir(parents=True)
    with pytest.raises(InterpError, match="expected no 'interp' of its own in the project"):
        make_project(tmp_path / "taken")
    (tmp_path / "file").touch()
    with pytest.raises(InterpError, match="expected a folder that can be made and written to"):
        make_project(tmp_path / "file/project")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "error: unknown command 'rnu', expected one of new, run, resume, ui, sync, store.\n"),
        (["new"], "error: expected one folder, got nothing. Write: interpipe new FOLDER\n"),
        (["new", "a", "b"], "error: expected one folder, got a b. Write: interpipe new FOLDER\n"),
    ],
)
def test_a_command_that_there_is_not(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["interpipe", *arguments])
    assert cli.main() == 2
    assert capsys.readouterr().err == message


def test_choices_of_the_projects_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.__main__ import main

    home = make_project(tmp_path)
    monkeypatch.chdir(home / "conf")
    monkeypatch.setattr(sys, "argv", ["pipeline", "experiment=first", "model=gpt2", "--cfg", "job", "-p", "report"])
    assert main() == 0
    assert "title: My first experiment" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["pipeline", "experiment=firsd", "--cfg", "job"])
    assert main() == 2
    assert "unknown choice 'firsd' of group 'experiment'. Did you mean 'first'?" in capsys.readouterr().err
    (home / "conf/model").mkdir()
    (home / "conf/model/gpt2.yaml").touch()
    assert main() == 2
    assert "conf/model/gpt2.yaml: a choice of this name ships with Interpipe" in capsys.readouterr().err


def _installed(folder: Path) -> Path:
    """Build the wheel and install it into an environment of its own; returns the folder of its programs."""
    source = folder / "source"
    for name in BUILT:
        shutil.copytree(CODE / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BESIDE:
        shutil.copyfile(CODE / name, source / name)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, check=True, capture_output=True)
    shutil.rmtree(source)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (wheel,) = folder.glob("interpipe-*.whl")
    shutil.unpack_archive(wheel, packages, "zip")
    libraries = [path for path in sys.path if path.endswith("site-packages")]  # none of whose .pth files are read
    (packages / "libraries.pth").write_text("\n".join(libraries))
    program = environment / "bin/interpipe"  # as an installer writes it
    program.write_text(f"#!{environment}/bin/python\nimport sys\nfrom pipeline.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    return program.parent


def test_a_wheel_makes_a_project_and_runs_in_it(tmp_path: Path) -> None:
    programs = _installed(tmp_path)
    (packages,) = programs.parent.glob("lib/python*/site-packages")

    def files() -> set[str]:
        return {str(path) for path in packages.rglob("*") if "__pycache__" not in path.parts}

    def run(*command: str, cwd: Path) -> str:
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        ran = subprocess.run(command, cwd=cwd, env={**kept, "PATH": path}, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    assert (packages / "interp/py.typed").is_file() and (packages / "pipeline/py.typed").is_file()
    assert (packages / "pipeline/demo/circuit_model/model.safetensors").is_file()
    shipped_files = files()
    run("interpipe", "new", "mine", cwd=tmp_path)
    home = tmp_path / "mine"
    chosen = ("debug=tiny", "lens=logit_lens")
    said = run("interpipe", "run", *chosen, "tracking=default", "hydra.run.dir=outputs/1", cwd=home)
    assert "collect: cached" not in said and "interpipe ui" in said
    record = json.loads((home / "outputs/1/run.json").read_text())
    assert record["status"] == "FINISHED" and (home / "outputs/1/pipeline").samefile(packages / "pipeline")
    status = run("dvc", "status", "--json", cwd=home / "outputs/1")
    assert [name for name, why in json.loads(status).items() if why != ["always changed"]] == []
    (home / "notes").mkdir()
    run(str(programs / "python"), "-m", "pipeline", *chosen, "hydra.run.dir=outputs/2", cwd=home / "notes")
    stages = json.loads((home / "notes/outputs/2/run.json").read_text())["stages"]
    assert stages and all(stage["cached"] for stage in stages.values()), "one cache, wherever one stands in it"
    assert {"mlflow.db", "mlartifacts", ".interpipe"} <= {path.name for path in home.iterdir()}
    assert (home / ".dvc/cache").is_dir()
    assert files() == shipped_files, "nothing is written where the code is"

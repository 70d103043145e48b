"""The command line: help, rejected configs, exit statuses, sweeps."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra._internal.hydra import Hydra

from pipeline.project import CODE

INVALID = Path(__file__).with_name("invalid")
CASES = sorted(INVALID.glob("*.yaml"))
HEAVY = ["torch", "transformers", "tokenizers", "datasets", "numpy", "zarr", "mlflow", "dvc", "matplotlib"]

CommandLine = Callable[..., int]


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CommandLine:
    """`command_line("lens=logit_lens", ...)`: `python -m pipeline` in this process, standing in an empty folder."""
    from pipeline.__main__ import main

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        try:
            return main()
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            return stop.code

    monkeypatch.chdir(tmp_path)
    for name in ("HYDRA_FULL_ERROR", "NDIF_API_KEY", "NDIF_HOST"):
        monkeypatch.delenv(name, raising=False)
    return run


@pytest.mark.parametrize("case", CASES, ids=[case.stem for case in CASES])
def test_rejects(
    case: Path,
    command_line: CommandLine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Hydra composes each config twice, at first for its `hydra.mode`, which none of these sets.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)
    expected = yaml.safe_load(case.read_text(encoding="utf-8"))
    overrides = [override.replace("{files}", str(INVALID / "files")) for override in expected["overrides"]]
    if not any(override.startswith(("model=", "+model", "modle")) for override in overrides):
        overrides.insert(0, "model=gpt2")  # from the hub, so there is nothing on disk to check
    assert command_line(*overrides) == 2
    said = capsys.readouterr()
    assert expected["message"] in said.err
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, "one message, no traceback"
    assert said.out == ""
    assert list(tmp_path.iterdir()) == [], "nothing is started"


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--cfg", "job"], 0),
        (["model=gpt2", "collect.positions=[lst]"], 2),
        (["-m", "model=gpt2", "task.shots=3,-3"], 2),
    ],
)
def test_imports_nothing_heavy(arguments: list[str], status: int, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(CODE)!r}); sys.argv = ['pipeline', *{arguments!r}]\n"
        "from pipeline.__main__ import main\n"
        "try: status = main()\n"
        "except SystemExit as stop: status = stop.code\n"
        f"print('loaded', [name for name in {HEAVY!r} if name in sys.modules], status)\n"
    )
    ran = python(code, tmp_path)
    assert ran.stdout.splitlines()[-1] == f"loaded [] {status}", ran.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_the_command_imports_nothing_heavy_for_its_help(arguments: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(CODE)!r}); sys.argv = ['interpipe', *{arguments!r}]\n"
        "from pipeline.cli import main\n"
        f"status = main(); print('loaded', [name for name in {HEAVY!r} if name in sys.modules], status)\n"
    )
    ran = python(code, tmp_path)
    assert ran.stdout.splitlines()[-1] == "loaded [] 0", ran.stderr


def test_help_lists_groups_and_stages(command_line: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line("--help") == 0
    said = capsys.readouterr().out
    for group in (folder for folder in (CODE / "conf").iterdir() if folder.is_dir() and folder.name != "hydra"):
        choices = ", ".join(sorted(file.stem for file in group.glob("*.yaml")))
        assert f"{group.name}: {choices}\n" in said
    for stage in ("tokenize", "collect", "tune", "lens", "evaluate", "report"):
        assert re.search(rf"^{stage}  ", said, re.MULTILINE)
    assert "$" not in said.replace('"$(python', "")


def test_config_folder_of_the_user_adds_choices(
    command_line: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "own.yaml").write_text("name: own\nsource: org/own\n")
    assert command_line("--config-dir", "mine", "model=own", "--cfg", "job", "-p", "model") == 0
    assert "source: org/own" in capsys.readouterr().out
    assert command_line("--config-dir", "mine", "model=ownn", "--cfg", "job") == 2
    assert "unknown choice 'ownn' of group 'model'. Did you mean 'own'?" in capsys.readouterr().err


def test_a_sweep_with_a_bad_job_starts_none(
    command_line: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line("-m", "model=gpt2", "task.shots=2,-1,-2", "lens=logit_lens,logitlens") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: 5 of 6 jobs cannot be run, so none was started:\n")
    assert "model=gpt2 task.shots=-1 lens=logit_lens: task.shots: expected 0 or more, got -1." in said
    assert "and 2 more: unknown choice 'logitlens' of group 'lens'. Did you mean 'logit_lens'?" in said
    assert list(tmp_path.iterdir()) == []


def test_bash_completion_knows_groups(tmp_path: Path) -> None:
    script = (
        f'export PYTHONPATH={CODE}; python() {{ {sys.executable} "$@"; }}\n'
        'eval "$(python -m pipeline -sc install=bash)"\n'
        'COMP_LINE="python -m pipeline lens=patchscope_q" COMP_POINT=36 COMP_CWORD=3\n'
        "COMP_WORDS=(python -m pipeline lens=patchscope_q); _interpipe_completion; echo ${COMPREPLY[@]}\n"
    )
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout.split() == ["lens=patchscope_query", "lens=patchscope_query_mean"], ran.stderr

"""`python -m interp tune` and `tuned-eval`, as a user gives them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from interp.__main__ import main
from interp.translators import training
from tests.interp.translators.test_published import write_public
from tests.tiny import TEXT, tiny_folder, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder("llama", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n\n".join([*TEXT] * 12), encoding="utf-8")
    return str(path)


def options(text: str, output: Path, *more: str) -> list[str]:
    steps = ["--steps", "8", "--tokens-per-step", "128", "--sequence-length", "16", "--checkpoint-every", "1"]
    return ["--text", text, "--output", str(output), *steps, "--layers", "0,2", *more]


def test_a_lens_is_trained_measured_and_not_trained_twice(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "lens"
    assert main(["tune", model, *options(text, output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "kl by layer, in bits per byte of text"
    assert lines[1].split() == ["step", "rate", "0", "2"]
    assert [line.split()[0] for line in lines[2:10]] == [f"{step}/8" for step in range(1, 9)]
    assert float(lines[9].split()[2]) < float(lines[2].split()[2])
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "lens.safetensors"]
    written = (output / "lens.safetensors").read_bytes()

    assert main(["tune", model, *options(text, output)]) == 0
    assert "holds this lens already" in capsys.readouterr().out
    assert main(["tune", model, *options(text, output, "--clip", "2")]) == 1
    assert "lens of another training: clip 1.0 there, 2.0 here" in capsys.readouterr().err
    assert main(["tune", model, *options(text, output, "--no-resume")]) == 0
    assert (output / "lens.safetensors").read_bytes() == written
    capsys.readouterr()

    evaluation = ["tuned-eval", model, str(output), "--text", text, "--sequence-length", "16", "--max-tokens", "200"]
    assert main(evaluation) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "bytes of text" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["0", "2", "3"]
    assert main([*evaluation, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kl"][1][0] < told["kl"][0][0]


def test_a_killed_command_goes_on(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["tune", model, *options(text, tmp_path / "whole")]) == 0
    advance = training._Run.advance

    def killed(run: training._Run, stream: object) -> object:
        if run.step == 2:
            raise KeyboardInterrupt
        return advance(run, stream)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(training._Run, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            main(["tune", model, *options(text, tmp_path / "killed")])
    capsys.readouterr()
    assert main(["tune", model, *options(text, tmp_path / "killed", "--steps", "9")]) == 1
    assert "steps 8 there, 9 here" in capsys.readouterr().err
    assert main(["tune", model, *options(text, tmp_path / "killed")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("found a checkpoint")
    assert lines[3].split()[0] == "3/8"
    for name in ("config.json", "lens.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_lens_of_the_tuned_lens_library_is_measured(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_public(tmp_path / "public", tiny_model("llama").get_parameter("lm_head.weight"))
    command = ["tuned-eval", model, str(tmp_path / "public"), "--text", text, "--sequence-length", "16"]
    assert main([*command, "--max-tokens", "50"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4
    write_public(tmp_path / "public", torch.ones(400, 32))
    assert main(command) == 1
    assert capsys.readouterr().err.startswith("error: the lens in")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layers", "0-x"], "expected numbers and ranges such as 0-5,8"),
        (["--layers", "0-3"], "layer 3 is the model's last"),
        (["--steps", "60"], "the text ended in step"),
        (["--column", "body"], "expected a column 'body'"),
    ],
)
def test_errors_are_one_message(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(["tune", model, *options(text, tmp_path / "lens", *more)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error

"""`python -m interp`: the table of proofs of models, and the list of families."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.__main__ import main
from interp.architectures import ARCHITECTURES, REFUSED, VISION_LAYOUTS


def test_check_prints_every_proof(model_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(model_folder("llama"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "LlamaForCausalLM, family llama, 4 layers, float32" in lines[1]
    proved = [line.removeprefix("  ok    ").split("  ")[0] for line in lines if line.startswith("  ok")]
    for identity in (
        "resid_pre == embed",
        "resid_mid == resid_pre + attn_out",
        "sum of head_out + bias == attn_out",
        "readout(resid_post) == logits",
        "rows of pattern sum to 1",
        "an edit of mlp_post changes the logits",
        "an edit of scores changes the logits",
    ):
        assert identity in proved, lines
    assert lines[-2].strip() == "all hold"
    assert not any("FAIL" in line for line in lines)


def test_check_as_json_of_good_and_bad_models(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in model_folder("gpt2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["transformer.h.1.mlp.c_proj.weight"].fill_(torch.inf)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert main(["check", str(model_folder("gpt2")), str(tmp_path), str(tmp_path / "none"), "--json"]) == 1
    good, overflowing, missing = json.loads(capsys.readouterr().out)
    assert good["holds"]
    assert good["family"] == "gpt2"
    by_name = {proof["identity"]: proof for proof in good["proofs"]}
    assert by_name["resid_post == resid_mid + mlp_out"]["layers"] == 4
    assert 0 <= by_name["resid_post == resid_mid + mlp_out"]["difference"] <= 1e-5
    assert not overflowing["holds"]
    assert {proof["layer"] for proof in overflowing["proofs"] if not proof["holds"]} >= {1}
    assert "expected a folder with a model" in missing["error"]


def test_check_says_what_cannot_be_decided(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in model_folder("gpt2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    for name, weight in weights.items():
        if ".attn.c_proj." in name:
            weight.zero_()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert main(["check", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    open_ones = [line for line in lines if line.startswith("  ?     an edit of z changes the logits")]
    assert open_ones[0].endswith(
        "undecided: in every layer attn_out is the same whatever enters the layer (weights of zero?)"
    )
    assert lines[-2].strip() == "all others hold, 7 undecided"
    assert main(["check", str(tmp_path), "--json"]) == 0
    proofs = {proof["identity"]: proof for proof in json.loads(capsys.readouterr().out)[0]["proofs"]}
    assert proofs["an edit of z changes the logits"]["holds"] is None
    assert proofs["an edit of mlp_in changes the logits"]["holds"] is True


def test_check_without_attention(model_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--no-attention", "--dtype", "bfloat16", str(model_folder("qwen3"))]) == 0
    text = capsys.readouterr().out
    assert "bfloat16" in text
    assert "pattern" not in text


def test_families_lists_every_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["model_type"] for row in listed["supported"]} == {
        model_type for record in (*ARCHITECTURES, *VISION_LAYOUTS) for model_type in record.model_types
    }
    assert listed["refused"] == REFUSED
    assert main(["families"]) == 0
    text = capsys.readouterr().out
    assert "attention and MLP in parallel" in next(line for line in text.splitlines() if line.startswith("cohere "))
    assert "capped at final_logit_softcapping" in next(line for line in text.splitlines() if line.startswith("gemma2 "))
    assert "images through model.visual" in next(line for line in text.splitlines() if line.startswith("qwen2_vl "))
    assert all(reason in text for reason in REFUSED.values())


def test_a_command_is_needed() -> None:
    done = subprocess.run([sys.executable, "-m", "interp"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "check" in done.stderr

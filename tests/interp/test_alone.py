"""The library alone: it needs nothing of the workflow, and the workflow says what to install."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What `pip install interpipe` does not bring, by the names that are imported.
ABSENT = ["configobj", "dvc", "hydra", "hydra_plugins", "matplotlib", "mlflow", "omegaconf", "plotly", "ruamel", "zarr"]
BLOCKED = f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT!r} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
LENS = """
import json, torch
from transformers import AutoModelForCausalLM
from interp import StandardizedTransformer
from interp.lenses import logit_lens
model = StandardizedTransformer(sys.argv[1])
result = logit_lens(model, "one two three", targets={"answer": ["four"]}, top_k=1)
with torch.no_grad():
    twin = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    logits = twin(**model.tokenizer("one two three", return_tensors="pt")).logits[0, -1]
print(json.dumps([int(result.top_ids[0, -1, 0]), int(logits.argmax()), float(result.top_log_prob[0, -1, 0]),
                  float(logits.log_softmax(-1).max())]))
"""
COMMAND = """
from pipeline.cli import main
sys.argv = ["interpipe", *sys.argv[1:]]
sys.exit(main())
"""


def run(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run code in a process in which the workflow's libraries cannot be imported."""
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    command = [sys.executable, "-c", path + BLOCKED + code, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_lens_without_the_workflow(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    ran = run(LENS, str(model_folder("llama")), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    top, own_top, log_prob, own_log_prob = json.loads(ran.stdout.splitlines()[-1])
    assert top == own_top and log_prob == pytest.approx(own_log_prob, abs=1e-4), "the last layer is the model's own"


def test_the_workflow_says_what_to_install(tmp_path: Path) -> None:
    ran = run(COMMAND, "run", "lens=logit_lens", cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr == (
        "error: the workflow needs configobj, dvc, hydra-core, hydra-joblib-launcher, matplotlib, mlflow, omegaconf, "
        "ruamel.yaml, zarr, which the library alone comes without. Install them: pip install 'interpipe[pipeline]'\n"
    )


def test_the_base_package_is_the_library() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {requirement.split(">")[0].split("<")[0] for requirement in project["dependencies"]}
    assert named.isdisjoint({"dvc", "hydra-core", "hydra-joblib-launcher", "matplotlib", "mlflow", "omegaconf", "zarr"})
    assert "interpipe[pipeline]" in project["optional-dependencies"]["dev"], "what `make` installs"
    assert all((ROOT / package / "py.typed").is_file() for package in ("interp", "pipeline"))

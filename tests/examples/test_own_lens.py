"""The example of a lens of one's own, as its user runs it; its numbers against the same in plain torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.artifacts.tokens import load_tokens
from pipeline.project import CODE
from pipeline.store import open_store
from tests.examples.projects import edit, record, run

CHOSEN = ("plugins=[centred_lens]", "lens=centred_lens")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, whose cache and runs are the tests' own."""
    return Path(shutil.copytree(CODE / "examples/own_lens", tmp_path_factory.mktemp("example") / "own_lens"))


def finished(home: Path, folder: str, *arguments: str) -> dict[str, Any]:
    """Run the example into a folder; returns its record."""
    ran = run(home, *arguments, "debug=tiny", *CHOSEN, f"hydra.run.dir={folder}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return record(home / folder)


def test_it_reads_what_plain_torch_reads(home: Path) -> None:
    plugins = finished(home, "outputs/1", "--config-dir", "conf", "lens.centred_lens.strength=0.75")["plugins"]
    assert list(plugins) == ["centred_lens"] and len(plugins["centred_lens"]) == 64
    store = open_store(home / "outputs/1/lens.zarr/centred_lens")
    prompts = [row for row in load_tokens(home / "outputs/1/tokens").prompts if row.labels.get("collides") != "yes"]

    model = AutoModelForCausalLM.from_pretrained(CODE / "pipeline/demo/model", dtype=torch.float32)
    kept: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, received, made: kept.append(made[0, -1]))
    states = []
    with torch.no_grad():
        for row in prompts:
            kept.clear()
            model(torch.tensor([list(row.input_ids)]))
            states.append(torch.stack(kept))
        hidden = torch.stack(states, dim=1)  # (layer, prompt, hidden)
        centred = hidden - 0.75 * hidden.mean(dim=1, keepdim=True)
        log_prob = model.lm_head(model.model.norm(centred)).log_softmax(dim=-1)
    groups = store.attributes["groups"]
    expected = torch.stack(
        [
            torch.stack([log_prob[:, at, list(row.answers[group])].logsumexp(dim=-1) for group in groups], dim=-1)
            for at, row in enumerate(prompts)
        ]
    )  # (prompt, layer, group)
    torch.testing.assert_close(torch.from_numpy(store.read("log_prob")), expected, rtol=1e-4, atol=1e-4)
    plain = model.lm_head(model.model.norm(hidden)).log_softmax(dim=-1).exp()
    assert (plain - log_prob.exp()).abs().max() > 0.01, "which is not what a logit lens reads"
    page = (home / "outputs/1/report/index.html").read_text(encoding="utf-8")
    assert "less 0.75 times the mean of its layer over all prompts" in page

    for name in ("__init__", "config", "stage"):
        edit(home / f"centred_lens/{name}.py", "from ", "# A comment means nothing.\nfrom ")
    again = finished(home, "outputs/2", "lens.centred_lens.strength=0.75")
    assert all(stage["cached"] for stage in again["stages"].values()), "the project's own conf/ is --config-dir"
    assert again["plugins"] != plugins, "which the record tells all the same"


def test_its_code_is_that_of_the_stages_that_use_it(home: Path) -> None:
    """Asked in a run folder, as a stage is: `extra` and `roots` are what a fingerprint of stages takes."""
    (home / "asked").mkdir()
    choices = ("debug=tiny", *CHOSEN, "--cfg", "job", "--resolve")
    (home / "asked/params.yaml").write_text(run(home, *choices).stdout.replace("# @package _global_", ""))
    code = (
        "import json\nfrom pipeline.fingerprints import of_stages\nfrom pipeline.stages.common import code_digest\n"
        "from pipeline.stages.code import plugin_code\n"
        "extra, roots = plugin_code()\n"
        "stages = of_stages(extra=extra, roots=roots)\n"
        "print(json.dumps([extra, {name: str(place) for name, place in roots.items()}, code_digest('lens'), stages]))"
    )

    def asked() -> Any:
        environment = {**os.environ, "PYTHONPATH": str(CODE)}
        command = [sys.executable, "-c", code]
        ran = subprocess.run(command, cwd=home / "asked", env=environment, capture_output=True, text=True, check=True)
        return json.loads(ran.stdout)

    extra, roots, digest, before = asked()
    assert extra == {"lens": ["centred_lens.config", "centred_lens.stage"], "report": ["centred_lens"]}
    assert roots == {"centred_lens": str(home / "centred_lens")}
    stage = home / "centred_lens/stage.py"
    stage.write_text(stage.read_text().replace("CHUNK = 256", "CHUNK = 128"))
    _, _, other, changed = asked()
    assert other != digest, "nor is work resumed that other code began"
    assert {name for name in before if before[name] != changed[name]} == {"lens", "report"}
    assert before["lens"].keys() == changed["lens"].keys()
    assert {module for module, mark in before["lens"].items() if changed["lens"][module] != mark} == {
        "centred_lens.stage"
    }
    stage.write_text(stage.read_text() + "\n# A comment means nothing.\n")
    assert asked()[3] == changed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lens.centred_lens.strength=1.5", "lens.centred_lens.strength: expected at most 1.0, got 1.5."),
        ("+lens.centred_lens.strenght=1", "lens.centred_lens: unknown key 'strenght'. Did you mean 'strength'"),
        ("plugins=[]", "lens.centred_lens.kind: unknown lens 'centred_lens'."),
        ("plugins=[centred_lense]", "Did you mean 'centred_lens'?"),
    ],
)
def test_its_config_is_checked_as_ours_are(override: str, message: str, home: Path) -> None:
    ran = run(home, *CHOSEN, override)
    assert ran.returncode == 2 and message in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr

"""The Hydra tree: every choice composes, is complete and can be run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipeline.config.activations import CollectConfig, StoreConfig
from pipeline.config.evaluate import EvaluateConfig, ReportConfig
from pipeline.config.lens import LensConfig
from pipeline.config.model import ModelConfig
from pipeline.config.paths import HUB_DATASET, HUB_MODEL
from pipeline.config.section import MISSING
from pipeline.config.task import TaskConfig
from pipeline.config.tracking import CacheConfig, TrackingConfig
from pipeline.config.translators import TuneConfig
from pipeline.files import sha256_of
from pipeline.project import CODE
from pipeline.validate import SECTIONS, Config, localize, plain, validate

CONF = CODE / "conf"
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
MODELS = sorted(file.stem for file in (CONF / "model").glob("*.yaml"))


def composed(*overrides: str) -> dict[str, Any]:
    """The config of a command line, as a run folder gets it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return localize(plain(compose("config", overrides=list(overrides))), CODE)


def valid(*overrides: str) -> Config:
    return validate(composed(*overrides))


def keys(schema: type) -> set[str]:
    return {described.name for described in fields(schema)}


def test_defaults_are_complete() -> None:
    values = composed()
    assert list(values) and set(values) == {*SECTIONS, "plugins"}, "none is missing, and nothing else is there"
    typed = validate(values)
    for section in ("model", "collect", "tune", "evaluate", "report", "store", "cache", "tracking"):
        assert set(values[section]) == keys(type(getattr(typed, section))), section
    assert list(typed.lens) == ["logit_lens", "patchscope", "patchscope_query", "patchscope_query_mean"]


# What a choice of `conf/` is about, where its schema says the simplest: which languages, which prompt.
CHOSEN = {
    "task/translation": {"source_languages", "latent_languages", "patch_into", "single_token_queries"},
    "lens/patchscope_generate": {"target", "target_prompt"},
    "tune/off": {"depends_on"},
}
SCHEMAS = {
    "model/demo": ModelConfig, "collect/default": CollectConfig, "store/default": StoreConfig, "tune/off": TuneConfig,
    "evaluate/default": EvaluateConfig, "report/default": ReportConfig, "cache/default": CacheConfig,
    "tracking/default": TrackingConfig,
    **{f"task/{kind}": schema for kind, schema in TaskConfig.kinds.items()},
    **{f"lens/{kind}": schema for kind, schema in LensConfig.kinds.items()},
}  # fmt: skip


@pytest.mark.parametrize("choice", SCHEMAS)
def test_there_is_one_default(choice: str) -> None:
    """That of `conf/`: what a schema fills in where a section is written by hand is the same."""
    written = yaml.safe_load((CONF / f"{choice}.yaml").read_text(encoding="utf-8"))
    differ = set()
    for described in fields(SCHEMAS[choice]):
        default = described.default_factory() if callable(described.default_factory) else described.default
        if default != MISSING and written.get(described.name, default) != default:
            differ.add(described.name)
    assert differ == CHOSEN.get(choice, set())


@pytest.mark.parametrize("kind", TaskConfig.kinds)
def test_each_task_runs_with_the_lenses_that_it_chooses(kind: str) -> None:
    values = composed(f"task={kind}")
    assert set(values["task"]) == keys(TaskConfig.kinds[kind])
    validate(values)


@pytest.mark.parametrize("file", sorted((CONF / "lens").glob("*.yaml")), ids=lambda file: file.stem)
def test_each_lens_is_complete(file: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"  # a file that only the user can name
    own.touch()
    named = {"jacobian_lens": {"jacobians": own, "sha256": sha256_of(own)}}.get(file.stem, {})
    values = composed(f"lens={file.stem}", *(f"lens.{file.stem}.{key}={value}" for key, value in named.items()))
    lenses = values.get("lens", {})
    assert list(lenses) == ([] if file.stem == "none" else [file.stem])
    for lens in lenses.values():
        assert set(lens) == keys(LensConfig.kinds[lens["kind"]])
    validate(values)


@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_complete(name: str) -> None:
    values = composed(f"model={name}")
    model = validate(values).model
    assert set(values["model"]) == keys(type(model))
    assert model.name == name
    if name not in ("demo", "shapes"):  # the embedded ones
        assert model.depends_on == HUB_MODEL and model.source.count("/") == 1
        assert model.num_layers is not None and model.revision == "main"


@pytest.mark.parametrize("group", ["collect", "evaluate", "report", "store", "tracking"])
def test_each_other_choice_can_be_run(group: str) -> None:
    for file in sorted((CONF / group).glob("*.yaml")):
        further = ["tracking.uri=http://127.0.0.1:5000"] if file.stem == "server" else []
        lens = ["lens=logit_lens"] if group == "collect" else []
        valid(f"{group}={file.stem}", *lens, *further)


def test_a_tuned_lens_chooses_where_it_comes_from(tmp_path: Path) -> None:
    assert valid().tune.kind == "off"
    assert valid("lens=[logit_lens,tuned_lens]").tune.kind == "prompts"
    assert valid("task=next_token", "lens=tuned_lens").tune.depends_on == "tokens/prompts"
    hub = valid("lens=tuned_lens", "tune=text", "tune.source=Salesforce/wikitext", "tune.name=wikitext-2-v1").tune
    assert (hub.kind, hub.depends_on) == ("text", HUB_DATASET)
    text = tmp_path / "text.txt"
    text.write_text("text", encoding="utf-8")
    own = valid("lens=tuned_lens", "tune=text", f"tune.source={text}").tune
    assert own.source == own.depends_on == str(text)
    for name in ("config.json", "lens.safetensors"):
        (tmp_path / name).touch()
    taken = valid("lens=tuned_lens", "tune=lens", f"tune.source={tmp_path}").tune
    assert taken.source == taken.depends_on == str(tmp_path)
    assert valid("debug=tiny", "lens=tuned_lens").tune.steps == 2
    # The last layer needs no translator, and the depth of a model need not be known.
    valid("lens=tuned_lens", "tune.layers='2,5'", "lens.tuned_lens.layers='2,5,7'")
    valid("model=gpt2", "model.num_layers=null", "lens=tuned_lens", "tune.layers='90'")


@pytest.mark.parametrize("tiny", [[], ["debug=tiny"]], ids=["full", "tiny"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_experiment_can_be_run(experiment: str, tiny: list[str]) -> None:
    config = valid(f"experiment={experiment}", *tiny)
    assert config.tracking.enabled == (not tiny)
    if tiny:
        limit = getattr(config.task, "max_concepts", None) or getattr(config.task, "max_prompts", None)
        assert limit is not None and limit <= 12


def test_a_choice_on_the_command_line_wins_over_an_experiment() -> None:
    config = valid("experiment=wendler_translation", "lens=[logit_lens,patchscope_identity]", "task.shots=2")
    assert list(config.lens) == ["logit_lens", "patchscope_identity"]
    assert getattr(config.task, "shots", None) == 2


@pytest.mark.parametrize("override", ["model=demo", *(f"experiment={name}" for name in EXPERIMENTS)])
def test_dvc_can_compose_the_tree(override: str) -> None:
    # `dvc exp run` resolves everything outside Hydra's own node, where `${hydra:...}` cannot be known.
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("config", overrides=[override])
    OmegaConf.resolve(config)
    text = "".join(file.read_text(encoding="utf-8") for file in CONF.rglob("*.yaml"))
    for line in text.splitlines():
        if "${now:" in line or "${hydra:" in line:
            assert line.split(":")[0].strip() in ("dir", "subdir"), line  # of hydra.run and hydra.sweep

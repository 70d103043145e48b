"""What is accepted, and what validation tells the stages. What is rejected: `tests/pipeline/invalid`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.config.base import ConfigError
from pipeline.config.model_size import ModelSize, model_size
from pipeline.config.validate import plain, validate
from tests.pipeline.config.test_conf import composed, valid
from tests.tiny import NUM_LAYERS


def test_depth_of_a_local_model(model_folder: Callable[[str], Path]) -> None:
    for family in ("llama", "gpt2"):  # the two names of the depth in config.json
        config = valid(f"model.source={model_folder(family)}")
        assert model_size(config.model).num_layers == NUM_LAYERS
    with pytest.raises(ConfigError, match=r"layer 4 is out of range. The model has 4 layers"):
        valid(f"model.source={model_folder('gpt2')}", "collect.sites=[resid_post.4]")


def test_depth_of_a_text_part(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 7}}))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    assert model_size(valid(f"model.source={tmp_path}").model) == ModelSize(num_layers=7)


def test_unknown_depth_checks_the_spelling_alone() -> None:
    config = ("model=gpt2", "model.num_layers=null", "lens=logit_lens", "lens.logit_lens.layers='90-95'")
    valid(*config, "collect.sites=[resid_post.*]")
    with pytest.raises(ConfigError, match="unknown kind 'resid'"):
        valid(*config, "collect.sites=[resid.90]")


def test_some_layers_are_enough_for_a_lens_on_them() -> None:
    valid("model=gpt2", "lens=logit_lens", "collect.sites=['resid_post.0,4-6,-1']", "lens.logit_lens.layers='4-6,11'")
    valid("model=gpt2", "lens=patchscope", "collect.sites=[mlp_out.3]", "lens.patchscope.layers='3'",
          "lens.patchscope.site=mlp_out")  # fmt: skip
    # from_layer writes every layer from the first on.
    later = ("lens=patchscope_query", "lens.patchscope_query.layers='9-10'")
    valid("model=gpt2", *later, "collect.sites=[resid_post.9-11]")
    with pytest.raises(ConfigError, match="lacks resid_post of layer 11"):
        valid("model=gpt2", *later, "collect.sites=[resid_post.0-10]")


def test_prompts_of_every_format(tmp_path: Path) -> None:
    rows = [{"text": "One and one is", "answer": "two"}, {"text": "Two and one is", "answer": "three"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (tmp_path / f"a{suffix}").open("w", newline="", encoding="utf-8-sig") as stream:
            writer = csv.DictWriter(stream, ["text", "answer"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet"):
        mine = ("task=next_token", f"task.source={tmp_path}/a{suffix}", "task.prompt_column=text")
        valid("model=gpt2", *mine, "task.target_columns=[answer]", "task.label_columns=[answer]")
        with pytest.raises(
            ConfigError, match=r"task.target_columns\[0\]: .* has no column 'answr'. Did you mean 'answer'"
        ):
            valid("model=gpt2", *mine, "task.target_columns=[answr]")


def test_a_dataset_of_the_hub_is_not_looked_up() -> None:
    config = valid("model=gpt2", "task=next_token", "task.source=org/texts", "task.prompt_column=anything")
    assert getattr(config.task, "depends_on", None) == "pipeline/config/hub_dataset.txt"


def test_a_latent_language_may_be_one_of_several_source_languages() -> None:
    valid("model=gpt2", "task.source_languages=[de,en]", "task.latent_languages=[en]")


def test_a_lexicon_of_the_user(tmp_path: Path) -> None:
    concepts = [
        {"id": f"c{number}", "words": {"la": [f"verbum{number}"], "el": [f"lexi{number}"]}} for number in range(4)
    ]
    file = tmp_path / "lexicon.json"
    file.write_text(json.dumps({"languages": {"la": "Latina", "el": "Ellinika"}, "concepts": concepts}))
    own = ("task.source_languages=[la]", "task.target_language=el", "task.latent_languages=[]", "task.patch_into=null")
    config = valid("model=gpt2", f"task.lexicon={file}", *own, "task.shots=3", "lens=logit_lens")
    assert getattr(config.task, "depends_on", None) == str(file)
    with pytest.raises(ConfigError, match=r"task.shots: 4 solved lines and a question need 5 concepts, and .* has 4"):
        valid("model=gpt2", f"task.lexicon={file}", *own, "task.shots=4", "lens=logit_lens")


def test_sections_are_read_as_their_types() -> None:
    config = valid("model=gpt2", "evaluate.confidence=0.9", "+tracking.tags.who=me", "collect.dtype=float32")
    assert config.evaluate.confidence == 0.9
    assert config.tracking.tags == {"who": "me"}
    assert config.collect.dtype == "float32"


def test_a_key_of_a_missing_section_is_named() -> None:
    values = composed("model=gpt2")
    del values["evaluate"]
    with pytest.raises(ConfigError, match=r"^evaluate: expected a mapping, got nothing"):
        validate(values)


def test_plain_resolves_interpolations() -> None:
    from omegaconf import OmegaConf

    assert plain(OmegaConf.create({"a": {"b": 3, "c": "${.b}"}})) == {"a": {"b": 3, "c": 3}}


def test_what_cannot_run_remotely_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDIF_API_KEY", "a key")
    remote = ("model=gpt2", "model.remote=true")
    assert valid(*remote, "lens=[logit_lens,patchscope,patchscope_query_mean]").model.remote
    for overrides, message in (
        (["lens=patchscope_grid"], "lens.patchscope_grid: kind patchscope_grid does not run remotely"),
        (["lens=[logit_lens,knockout]"], "lens.knockout: kind knockout does not run remotely"),
        (["lens=attention_object", "collect.sites=[attn_in.*]"], "kind attention_object does not run remotely"),
        (["lens=patchscope_generate"], "kind patchscope_generate does not run remotely"),
        (["tune=default", "lens=tuned_lens"], "tune: maps are trained on gradients and text, which stay here"),
        (["tune=default", "lens=affine_lens"], "tune: maps are trained"),
    ):
        with pytest.raises(ConfigError, match=message):
            valid(*remote, *overrides)

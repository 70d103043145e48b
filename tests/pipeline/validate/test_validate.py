"""What is accepted, and what validation tells the stages. What is rejected: `tests/pipeline/invalid`."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pyarrow
import pyarrow.parquet
import pytest
import transformers

from pipeline.config.activations import CollectConfig, StoreConfig
from pipeline.config.evaluate import EvaluateConfig, ReportConfig
from pipeline.config.lens import LensConfig, PatchscopeConfig, lenses_from
from pipeline.config.model import ModelConfig
from pipeline.config.section import MISSING, ConfigError, section_from
from pipeline.config.task import TaskConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.config.translators import TuneConfig
from pipeline.tables.facts import Choice
from pipeline.tasks.next_token import NextTokenConfig
from pipeline.tasks.translation import PatchIntoConfig
from pipeline.validate import model_source as machine
from pipeline.validate import plain, validate
from pipeline.validate.model_source import SUPPORTS, ModelSize, check_machine, model_size
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
    (tmp_path / "a.NDJSON").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "a.CSV.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes(), mtime=0))
    for suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".NDJSON", ".CSV.gz"):
        mine = ("task=next_token", f"task.source={tmp_path}/a{suffix}", "task.prompt_column=text")
        valid("model=gpt2", *mine, "task.target_columns=[answer]", "task.label_columns=[answer]")
        with pytest.raises(
            ConfigError, match=r"task.target_columns\[0\]: .* has no column 'answr'. Did you mean 'answer'"
        ):
            valid("model=gpt2", *mine, "task.target_columns=[answr]")


def test_a_dataset_of_the_hub_is_not_looked_up() -> None:
    config = valid("model=gpt2", "task=next_token", "task.source=org/texts", "task.prompt_column=anything")
    assert getattr(config.task, "depends_on", None) == "pipeline/config/hub_dataset.txt"


def test_a_folder_of_a_published_data_set_and_its_subjects(tmp_path: Path) -> None:
    folder = tmp_path / "relations"
    folder.mkdir()
    for name in ("sea", "town"):
        facts = {"name": name, "prompt_templates": ["{} is in", "Of {}:"], "samples": [{"subject": "A", "object": "B"}]}
        (folder / f"{name}.json").write_text(json.dumps(facts))
    own = ("model=gpt2", "task=next_token", f"task.source={folder}", "task.prompt_template=1", "task.relations=[town]")
    config = valid(*own, "task.subject_column=subject", "collect.positions=[query.last,last]")
    assert isinstance(config.task, NextTokenConfig)
    assert (config.task.source, config.task.depends_on) == (str(folder), str(folder))
    assert config.task.rows_of().choice == Choice(template="1", relations=("town",))
    with pytest.raises(ConfigError, match=r"collect.positions: .*query"):  # no subject, no span
        valid(*own, "collect.positions=[query.last]")
    with pytest.raises(ConfigError, match=r"task.source: .* has no relation 'towns'. Did you mean 'town'"):
        valid(*own, "task.relations=[towns]")
    with pytest.raises(
        ConfigError, match=r"task.format: expected one of auto, table, relations, .*Did you mean 'lama'"
    ):
        valid(*own, "task.format=lamma")


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


SCHEMAS = (
    *TaskConfig.kinds.values(), *LensConfig.kinds.values(), CollectConfig, EvaluateConfig, ModelConfig, PatchIntoConfig,
    ReportConfig, StoreConfig, TrackingConfig, TuneConfig,
)  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_every_number_has_bounds(schema: type) -> None:
    """And what lies beyond them is refused where the section is read, in a run and in a stage alike."""
    hints = get_type_hints(schema)
    for described in fields(schema):
        kinds = set(get_args(hints[described.name])) or {hints[described.name]}
        if not kinds & {int, float}:
            assert "least" not in described.metadata
            continue
        least, most = described.metadata["least"], described.metadata["most"]
        assert math.isfinite(least) and math.isfinite(most) and least < most, described.name
        for value in (least - 1, most * 2, *([10**4000] if int in kinds else [])):
            with pytest.raises(ConfigError, match=rf"^here\.{described.name}: expected .*, got "):
                section_from(schema, {described.name: value, **missing(schema, described.name)}, "here")


def missing(schema: type, other: str) -> dict[str, str]:
    """A value for each key that has no default."""
    return {f.name: "x" for f in fields(schema) if f.default == MISSING and f.name != other}


@pytest.mark.parametrize("character", ["\0", "\x1b", "\x7f", "\x85", "\u2028", "\udcff"])
def test_characters_that_are_not_seen_are_refused(character: str) -> None:
    for where, section, key in (("report", ReportConfig, "title"), ("lens.x", PatchscopeConfig, "target_prompt")):
        with pytest.raises(ConfigError, match=rf"^{where}\.{key}: expected a text .*U\+{ord(character):04X}"):
            section_from(section, {key: f"a{character}b"}, where)
    values = composed("model=gpt2")
    values["tracking"]["tags"] = {f"a{character}": "b"}
    with pytest.raises(ConfigError, match=r"^tracking\.tags, key "):
        validate(values)


def test_a_prompt_may_have_several_lines_and_a_name_may_not() -> None:
    prompt = "one\n\ttwo"
    assert section_from(PatchscopeConfig, {"target_prompt": prompt}, "lens.x").target_prompt == prompt
    with pytest.raises(ConfigError, match=r"^tracking\.experiment: expected a text of one line"):
        section_from(TrackingConfig, {"experiment": "one\ntwo"}, "tracking")


def test_names_that_become_folders_and_tags() -> None:
    for name in ("a/b", "..", ".hidden", "", "x" * 101):
        with pytest.raises(ConfigError, match=r"^lens: expected a name of letters"):
            lenses_from({name: {"kind": "logit_lens"}})
    values = composed("model=gpt2")
    values["tracking"]["tags"] = {"a@b": "c"}
    with pytest.raises(ConfigError, match=r"^tracking\.tags: expected names of letters, digits, '_-\. :/', got 'a@b'"):
        validate(values)


@pytest.mark.parametrize("override", ["lens=none", "lens=[]", "lens=[none]"])
def test_a_run_may_have_no_lens(override: str) -> None:
    assert composed(override).get("lens", {}) == {} and valid(override).lens == {}


def test_a_family_without_an_implementation_of_attention(tmp_path: Path) -> None:
    """Told from config.json and transformers' source; its classes say the same (they would cost an import of torch)."""
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    for family, attribute in (("codegen", "sdpa"), ("llama", "sdpa"), ("gpt_neo", "flex_attention"), ("mpt", "eager")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
        kind = getattr(transformers, {"gpt_neo": "GPTNeo", "codegen": "CodeGen"}.get(family, family.title()) + "Model")
        can = getattr(kind, SUPPORTS[attribute]) if attribute != "eager" else True
        overrides = (f"model.source={tmp_path}", f"model.attention_implementation={attribute}", "lens=none")
        if can:
            valid(*overrides)
        else:
            with pytest.raises(
                ConfigError, match=rf"^model\.attention_implementation: transformers has no {attribute}"
            ):
                valid(*overrides)


@pytest.mark.parametrize(
    ("variables", "device_map", "fits"),
    [
        ({}, "cuda:1", True),
        ({}, "cuda:2", False),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "cuda:1", False),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "cuda", True),
        ({"CUDA_VISIBLE_DEVICES": ""}, "cuda:0", False),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, "cuda:1", False),
        ({}, "mps", False),
        ({"CUDA_VISIBLE_DEVICES": ""}, "auto", True),
    ],
)
def test_devices_of_this_machine(
    variables: dict[str, str], device_map: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with two GPUs, as Linux shows them."""
    monkeypatch.setattr(machine.os, "listdir", lambda folder: ["nvidia0", "nvidia1", "nvidiactl", "null"])
    monkeypatch.setattr(machine.metadata, "version", lambda package: "2.13.0")
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    model = ModelConfig(name="x", source="x", device_map=device_map, depends_on="x")
    if fits:
        check_machine(model)
    else:
        with pytest.raises(ConfigError, match=r"^model\.device_map: "):
            check_machine(model)
    monkeypatch.setattr(machine.metadata, "version", lambda package: "2.13.0+cpu")
    assert machine.nvidia_gpus() == 0, "torch without CUDA has none, whatever the machine has"


def test_what_cannot_run_remotely_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDIF_API_KEY", "a key")
    remote = ("model=gpt2", "model.remote=true")
    assert valid(*remote, "lens=[logit_lens,patchscope,patchscope_query_mean]").model.remote
    assert valid("model=gemma2_2b", "model.remote=true").model.attention_implementation == "eager"  # not used: said
    for overrides, message in (
        (["lens=patchscope_grid"], "lens.patchscope_grid: kind patchscope_grid does not run remotely"),
        (["lens=[logit_lens,knockout]"], "lens.knockout: kind knockout does not run remotely"),
        (["lens=attention_object", "collect.sites=[attn_in.*]"], "kind attention_object does not run remotely"),
        (["lens=patchscope_generate"], "kind patchscope_generate does not run remotely"),
        (["tune=default", "lens=tuned_lens"], "tune: maps are trained on gradients and text, which stay here"),
        (["tune=default", "lens=affine_lens"], "tune: maps are trained"),
        (["model.device_map=cpu"], "model.device_map: expected auto with model.remote=true, since the server has"),
    ):
        with pytest.raises(ConfigError, match=message):
            valid(*remote, *overrides)

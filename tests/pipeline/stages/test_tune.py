"""The stage `tune`, and the tuned lens of the stage `lens`, in a run folder of a tiny model."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.translators import TunedLens
from pipeline.project import MARKER
from pipeline.stages import collect, tune
from pipeline.stages.lens import __main__ as lens
from pipeline.stages.tokenize import write_tokens
from pipeline.store import open_store
from tests.interp.lenses.twins import HookTwin, assert_equal, expected
from tests.interp.translators.test_published import write_public
from tests.pipeline.stages.lens.test_lens import PROMPTS, TASK, TOP_K, arrays, files, source_baseline
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

TRAINED = {"steps": 4, "tokens_per_step": 40, "checkpoint_every": 1, "evaluate_tokens": 30, "depends_on": "tokens"}
LENS = {"kind": "tuned_lens", "layers": "0,2-3", "top_k": TOP_K, "batch_size": 2}
Enter = Callable[..., Path]


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, so that scratch folders stay in the test's folder; and small blocks."""
    (tmp_path / MARKER).touch()
    monkeypatch.setattr(lens, "BLOCK_SIZE", 2)
    return tmp_path


@pytest.fixture
def enter(repository: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Enter:
    """`enter(name, **section)`: make a run folder with a section `tune`, and go there."""

    def make(name: str = "run", **section: Any) -> Path:
        folder = repository / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        source = str(model_folder("llama"))
        params = {
            "model": {"name": "llama", "source": source, "device_map": "cpu", "depends_on": source},
            "collect": {"sites": ["resid_post.*"], "positions": ["last"]},
            "tune": {**TRAINED, **section},
            "lens": {"tuned": LENS},
            "store": {},
        }
        OmegaConf.save(params, folder / "params.yaml")
        write_tokens(TASK, "tokens", kind="translation", tokenizer_digest="0" * 64)
        return folder

    return make


def model(model_folder: Callable[[str], Path]) -> StandardizedTransformer:
    return StandardizedTransformer(model_folder("llama"), dtype="float32", device_map="cpu")


def manifest() -> dict[str, Any]:
    return json.loads(Path("tuned_lens/manifest.json").read_text())


def test_off_makes_nothing_and_loads_nothing(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = enter(kind="off")
    monkeypatch.setitem(sys.modules, "pipeline.stages.loading", None)  # an import of it would fail
    assert tune.run() == {}
    assert files(folder / "tuned_lens").keys() == {"manifest.json"}
    assert manifest() == {"format": "interpipe.tuned_lens/1", "kind": "off"}


def test_trained_on_the_runs_prompts_and_read_by_the_lens(enter: Enter, model_folder: Callable[[str], Path]) -> None:
    enter(kind="prompts")
    measured = tune.run()
    assert measured["tokens"] == 4 * 40
    told = manifest()["evaluation"]
    assert told["layers"] == [0, 1, 2, 3]
    assert told["text_was_trained_on"]
    assert told["tokens"] >= 20
    trained = TunedLens.load("tuned_lens", model(model_folder))
    assert trained.layers == (0, 1, 2)
    assert (trained.training_record or {})["settings"]["steps"] == 4

    collect.main()
    lens.run()
    store, twin = open_store("lens.zarr/tuned", verify=True), HookTwin("llama")
    wanted = []
    for number in (0, 1, 2, 4, 5):  # prompt 3 collides
        ids, groups = PROMPTS[number].input_ids, list(PROMPTS[number].answers.values())
        states = twin.residuals(ids)[:, -1]
        translated = [
            states[layer] if layer == 3 else states[layer] + bias + weight @ states[layer]
            for layer in (0, 2, 3)
            for bias, weight in [[p.detach() for p in trained.parameters_of(min(layer, 2))]]
        ]
        by_layer = [twin.logits(ids, len(ids) - 1, {3: latent}) for latent in translated]
        one = expected(by_layer, groups, TOP_K, twin.logits(ids))
        wanted.append({**one, "baseline_source_log_prob": source_baseline(twin, [number], groups)})
    assert_equal(arrays(store), wanted, atol=1e-5)
    assert store.attributes["tuned_lens"]["unembedding_sha256"] == trained.unembedding


def test_trained_on_text_and_measured_on_what_comes_next(enter: Enter, repository: Path) -> None:
    text = repository / "text.txt"
    text.write_text("\n\n".join(TEXT * 3), encoding="utf-8")
    enter(kind="text", source=str(text), sequence_length=16, repeat=False)
    tune.run()
    told = manifest()["evaluation"]
    assert not told["text_was_trained_on"]
    assert (told["tokens"], len(told["kl"])) == (30, 2)  # two sequences of 16, the first token of each not predicted
    assert np.isfinite(told["bits_per_byte"]).all()
    assert str(repository) not in Path("tuned_lens/config.json").read_text()


def test_text_that_is_used_up_is_not_measured(enter: Enter, repository: Path) -> None:
    text = repository / "text.txt"
    count = sum(len(tiny_tokenizer()(t, add_special_tokens=False)["input_ids"]) + 1 for t in TEXT)
    text.write_text("\n\n".join(TEXT), encoding="utf-8")
    sequences = count // 15
    enter(kind="text", source=str(text), sequence_length=16, repeat=False, steps=1, tokens_per_step=16 * sequences)
    tune.run()
    assert manifest()["evaluation"] is None


def test_a_lens_that_exists_is_taken(enter: Enter, repository: Path, model_folder: Callable[[str], Path]) -> None:
    enter("first", kind="prompts")
    tune.run()
    own = files(Path("tuned_lens"))
    write_public(repository / "public", tiny_model("llama").get_parameter("lm_head.weight"))
    enter("second", kind="lens", source=str(repository / "first" / "tuned_lens"))
    assert tune.run() == {}
    assert manifest() == {"format": "interpipe.tuned_lens/1", "kind": "lens"}
    assert {name: data for name, data in files(Path("tuned_lens")).items() if name != "manifest.json"} == {
        name: data for name, data in own.items() if name != "manifest.json"
    }
    enter("third", kind="lens", source=str(repository / "public"))
    tune.run()
    assert TunedLens.load("tuned_lens", model(model_folder)).model_name == "somebody/tiny"


def test_a_killed_training_goes_on_to_the_same_bytes(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = enter("undisturbed", kind="prompts")
    tune.run()
    killed = enter("killed", kind="prompts")
    told = tune._Told.__call__

    def kill(self: tune._Told, step: Any) -> None:
        told(self, step)
        if step.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tune._Told, "__call__", kill)
        tune.run()
    assert not (killed / "tuned_lens").exists()
    assert tune.run()["tokens"] == 40  # one step was left
    assert files(killed / "tuned_lens") == files(undisturbed / "tuned_lens")
    assert not any((undisturbed.parent / ".interpipe/scratch").glob("tune-*/"))


def test_a_lens_of_layers_without_translator_is_refused(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(kind="prompts", layers="0-1")
    tune.run()
    collect.main()
    with pytest.raises(InterpError, match=r"lens.tuned.layers: .* no translator of layers \[2\], only of \[0, 1\]"):
        lens.run()
    shutil.rmtree("tuned_lens")
    with pytest.raises(InterpError, match=r"expected a tuned lens in tuned_lens, found no config\.json"):
        lens.run()


def test_another_tuned_lens_is_another_work(enter: Enter, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed lens stage left is not used with other translators."""
    enter(kind="prompts")
    tune.run()
    collect.main()

    def interrupted(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lens.StoreWriter, "finish", interrupted)
        lens.run()
    params = OmegaConf.load("params.yaml")
    params.tune.learning_rate = 0.1
    OmegaConf.save(params, "params.yaml")
    tune.run()
    lens.run()
    trained = open_store("lens.zarr/tuned").attributes["tuned_lens"]["training"]
    assert trained["settings"]["learning_rate"] == 0.1
    kl = open_store("lens.zarr/tuned").read("kl")
    shutil.rmtree("lens.zarr")
    shutil.rmtree(repository / ".interpipe")
    lens.run()
    np.testing.assert_array_equal(open_store("lens.zarr/tuned").read("kl"), kl)


def test_no_prompts_to_train_on(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(kind="prompts")
    monkeypatch.setattr(tune, "load_prompts", list)
    with pytest.raises(InterpError, match="holds no prompt to train on"):
        tune.run()
    assert torch.is_grad_enabled()

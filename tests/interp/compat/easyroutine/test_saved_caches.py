"""Activations are saved, and found again by what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from interp import InterpError
from interp.compat.easyroutine import ActivationCache, ActivationLoader, ActivationSaver, ExtractionConfig, HookedModel
from tests.interp.compat.easyroutine.plain import EXAMPLES, padded


def test_a_cache_is_found_by_what_was_asked_for(
    hooked: Callable[[str], HookedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, saver = hooked("llama"), ActivationSaver(tmp_path, "animals")
    config, queries = (
        ExtractionConfig(extract_resid_out=True),
        [{"type": "full-head", "head-layer-couple": [[0, 1]], "elem-to-ablate": "@last"}],
    )
    caches = [
        model.extract_cache([padded(EXAMPLES, "left")], names, extraction_config=config, ablation_queries=ablation)
        for names, ablation in ((["last", (0, 2)], None), ([0], queries), ([0], pd.DataFrame(queries)))
    ]
    folders = [saver.save_cache(cache, {"split": index}, tag="abc"[index]) for index, cache in enumerate(caches)]
    assert len(set(folders)) == 3  # in one second
    loader = ActivationLoader.from_saver(saver)
    assert loader.query().get_paths() == folders
    found, metadata = loader.query(target_token_positions=["last", (0, 2)]).load()
    assert isinstance(found, ActivationCache) and metadata["tag"] == "a"
    torch.testing.assert_close(found["resid_out_3"], caches[0]["resid_out_3"])
    assert found.map_to_dict("resid_out_3").keys() == {"last", (0, 2)}
    assert found["metadata"]["target_token_positions"] == ["last", (0, 2)]
    for query, tags in (
        (dict(tag="b"), "b"),
        (dict(extraction_config=config), "abc"),
        (dict(extraction_config=ExtractionConfig()), ""),
        (dict(interventions={"ablation_queries": queries}), "bc"),
        (dict(custom_keys={"split": 2}), "c"),
        (dict(model_name="LlamaForCausalLM", experiment_name="animals"), "abc"),
        (dict(experiment_name="plants"), ""),
        (dict(save_time="1970-01-01 00:00:00"), ""),
    ):
        assert "".join(run.metadata["tag"] for run in loader.query(**query)) == tags  # type: ignore[arg-type]
    every = loader.query()
    assert every[-1].load()[1]["tag"] == "c" and len(every[:2]) == 2 and "Tag: a" in repr(every)
    assert every.load(folders[1].name)[1]["tag"] == "b" and every.load(0)[1]["tag"] == "a"
    for wrong in (3, "1970"):
        with pytest.raises(InterpError, match="no run"):
            every.load(wrong)
    every.update_run_experiment(0, "plants")
    assert loader.query(experiment_name="plants").load()[1]["tag"] == "a"
    every.remove(-1)
    assert len(loader.query()) == 2 and not folders[2].exists()
    saver.rename_experiment("mammals")
    assert [run.experiment for run in loader.query(tag="b")] == ["mammals"]
    with pytest.raises(InterpError, match="is there already"):
        saver.rename_experiment("plants")
    monkeypatch.setenv("ACTIVATION_BASE_DIR", str(tmp_path))
    assert repr(ActivationSaver.from_env("x")) == f"ActivationSaver(base_dir={tmp_path}, experiment_name=x)"
    monkeypatch.delenv("ACTIVATION_BASE_DIR")
    with pytest.raises(InterpError, match="ACTIVATION_BASE_DIR is not set"):
        ActivationLoader.from_env()


def test_tensors_of_ones_own_are_saved_too(hooked: Callable[[str], HookedModel], tmp_path: Path) -> None:
    saver = ActivationSaver(tmp_path)
    saver.save({"mean": torch.ones(2)}, hooked("llama"), ["last"], extraction_config=ExtractionConfig())
    found, metadata = ActivationLoader(tmp_path).query(model_name="LlamaForCausalLM").load()
    assert found["mean"].tolist() == [1, 1] and metadata["target_token_positions"] == ["last"]
    with pytest.raises(InterpError, match="got <object"):
        saver.save([object()], "a/b", ["last"])
    assert len(ActivationLoader(tmp_path).query()) == 1
    with pytest.raises(InterpError, match="no metadata"):
        saver.save_cache(ActivationCache())
    with pytest.raises(InterpError, match="no folder"):
        ActivationLoader(tmp_path / "nothing").query()

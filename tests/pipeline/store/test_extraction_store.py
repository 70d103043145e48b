"""An extraction in a store: heads, ragged positions, statistics; the same bytes after a kill."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.activations import Extraction, ExtractionBlocks
from interp.errors import InterpError
from interp.prompts import Prompt
from pipeline.store import open_store, read_statistics, statistics_path, write_cache
from tests.interp.reference import wrapped

PROMPTS = [[1, 17, 250, 33, 94, 301, 9], [1, 88, 5, 260], [1, 2, 3], [4, 5, 6, 7, 8], [9, 10]]
ROWS = [{"input_ids": ids, "label": f"row {index}", "weight": index / 2} for index, ids in enumerate(PROMPTS)]
EXTRACTION = Extraction(
    "resid_post.1 z.2.h1 pattern.1.h0 pattern_ratio.2 last_norm_mean input_ids",
    "last :2 all",
    means="pattern.2 resid_post.2",
    queries="all",
    keys="first all",
)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".lock")]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def saver(batch: Any) -> dict[str, Any]:
    return {"label": batch["label"], "weight": batch["weight"]}


def blocks_of(dtype: torch.dtype | None = None) -> ExtractionBlocks:
    return EXTRACTION.blocks(wrapped("llama"), ROWS, block_size=2, batch_size=2, batch_saver=saver, dtype=dtype)


class Killed(ExtractionBlocks):
    """Dies in its third block."""

    @classmethod
    def of(cls, blocks: ExtractionBlocks) -> Killed:
        return cls(**{one.name: getattr(blocks, one.name) for one in fields(blocks)})

    def block(self, index: int) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return super().block(index)


def test_a_store_takes_an_extraction_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    blocks = blocks_of()
    assert write_cache(whole / "cache.zarr", blocks, statistics=True) == {"blocks": 3, "written": 3}
    with pytest.raises(KeyboardInterrupt):
        write_cache(again / "cache.zarr", Killed.of(blocks), statistics=True)
    assert write_cache(again / "cache.zarr", blocks_of(), statistics=True) == {"blocks": 3, "written": 1}
    assert digests(whole) == digests(again) and len(digests(whole)) > 30

    result = EXTRACTION.run(wrapped("llama"), ROWS, progress=False, batch_saver=saver)
    store = open_store(whole / "cache.zarr", verify=True)
    assert set(store.arrays) == set(result) - {"input_ids"}  # the tokens and positions are there anyway
    for name in store.arrays:
        np.testing.assert_allclose(store.read(name), result[name], rtol=1e-4, atol=1e-5)
    assert store.read("pattern.1.h0", example=1).shape == (7, 8)
    assert store.static("positions").tolist() == result.positions
    assert store.static("key_positions").tolist() == result.slots.key.table.tolist()
    assert store.static("saved_weight").tolist() == [0.0, 0.5, 1.0, 1.5, 2.0] == result.saved["weight"]
    assert store.attributes["saved"]["label"] == [row["label"] for row in ROWS] == result.saved["label"]
    assert Extraction.from_dict(store.attributes["extraction"]) == EXTRACTION
    assert store.attributes["axes"]["position"] == {"names": ["last", ":2", "all"], "widths": [1, 2, 7]}

    found = read_statistics(whole / "cache.zarr")
    for name, mean in result.means.items():
        np.testing.assert_allclose(found[name]["mean"], mean, rtol=1e-5, atol=1e-6)
    values = result["resid_post.1"].reshape(-1, 32).double().numpy()
    values = values[~np.isnan(values).any(1)]
    np.testing.assert_allclose(found["resid_post.1"]["mean"], values.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found["resid_post.1"]["std"], values.std(0), rtol=1e-6)
    assert found["resid_post.1"]["norm"] == pytest.approx(np.linalg.norm(values, axis=1).mean())
    assert (found["resid_post.1"]["count"] == len(values)).all()
    keys = found["pattern.1.h0"]["count"]  # a key is counted where a prompt has it
    assert keys.tolist() == [21, 21, 21, 19, 16, 12, 7, 7]


def test_means_alone_go_on_too(tmp_path: Path) -> None:
    model = wrapped("llama")
    extraction = Extraction(means="resid_post.1 pattern_sum.2", positions="all", mean_over_positions=True)
    blocks = extraction.blocks(model, PROMPTS, block_size=2)
    with pytest.raises(KeyboardInterrupt):
        write_cache(
            tmp_path / "a.zarr", Killed(**{name: getattr(blocks, name) for name in blocks.__dataclass_fields__})
        )
    assert write_cache(tmp_path / "a.zarr", blocks) == {"blocks": 3, "written": 1}
    assert open_store(tmp_path / "a.zarr").read("num_tokens").tolist() == [len(ids) for ids in PROMPTS]
    result = extraction.run(model, PROMPTS, progress=False)
    found = read_statistics(tmp_path / "a.zarr")
    assert set(found) == set(result.means)
    for name, mean in result.means.items():
        np.testing.assert_allclose(found[name]["mean"], mean, rtol=1e-5, atol=1e-6)
    assert (found["resid_post.1"]["count"] == len(PROMPTS)).all()


def test_what_does_not_fit_a_store_is_refused(tmp_path: Path) -> None:
    model = wrapped("llama")
    with pytest.raises(InterpError, match="no statistics"):
        read_statistics(tmp_path / "cache.zarr")
    blocks = Extraction("resid_post.1").blocks(model, PROMPTS, block_size=2, dtype=torch.bfloat16)
    write_cache(tmp_path / "cache.zarr", blocks)
    assert open_store(tmp_path / "cache.zarr").dtype("resid_post.1") == "bfloat16"
    assert not statistics_path(tmp_path / "cache.zarr").exists()
    with pytest.raises(InterpError, match="another config"):
        write_cache(tmp_path / "cache.zarr", Extraction("resid_post.1", "first").blocks(model, PROMPTS, block_size=2))
    with pytest.raises(InterpError, match="block_size"):
        Extraction("resid_post.1").blocks(model, PROMPTS, block_size=0)
    texts = [Prompt("king king", spans={"word": (5, 9)}), "hello"]
    with pytest.raises(InterpError, match="no span 'word'"):
        Extraction("resid_post.1", "word.all").blocks(model, texts)
    assert len(replace(blocks, ranges=[range(5)])) == 1

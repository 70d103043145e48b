"""The cache of many prompts in a store: written block by block, resumed, read by the names of its axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.activations import CacheBlocks, Extraction
from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.prompts import Prompt
from pipeline.store import open_store, write_cache
from tests.interp.reference import wrapped
from tests.vision import image

PROMPTS = [[1, 17, 250, 33, 94, 301], [1, 88, 5, 260], [1, 2, 3], [4, 5, 6, 7, 8], [9, 10]]
SITES = "resid_post.* mlp_post.1 z.0.h2 pattern.1"


def test_a_store_takes_a_cache(tmp_path: Path) -> None:
    model = wrapped("llama")
    blocks = model.cache_blocks(PROMPTS, sites=SITES, block_size=2)
    assert write_cache(tmp_path / "cache.zarr", blocks) == {"blocks": 3, "written": 3}
    assert write_cache(tmp_path / "cache.zarr", blocks) == {"blocks": 3, "written": 0}
    store = open_store(tmp_path / "cache.zarr")
    _, cache = model.run_with_cache(PROMPTS, sites=SITES)
    assert store.attributes["sites"] == list(cache) and store.attributes["model"]["digest"] == model.digest()
    for site in cache:
        np.testing.assert_allclose(store.read(site), cache[site], rtol=1e-4, atol=1e-5)
        assert store.dimensions(site) == cache.axes(site)
    assert store.read("pattern.1", example=2, query=1).shape == (4, 6)
    assert store.static("positions").tolist() == cache.positions
    assert store.static("input_ids").tolist() == [token for ids in PROMPTS for token in ids]


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    model = wrapped("llama")
    blocks = model.cache_blocks(PROMPTS, sites="resid_post.1", positions="last", dtype=torch.bfloat16, block_size=2)

    class Interrupted(CacheBlocks):
        def block(self, index: int) -> Any:
            if index == 1:
                raise KeyboardInterrupt
            return super().block(index)

    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "cache.zarr", Interrupted(blocks.request, blocks.ranges))
    assert write_cache(tmp_path / "cache.zarr", blocks) == {"blocks": 3, "written": 2}
    store = open_store(tmp_path / "cache.zarr")
    assert store.dtype("resid_post.1") == "bfloat16"
    _, cache = model.run_with_cache(PROMPTS, sites="resid_post.1", positions="last")
    np.testing.assert_allclose(store.read("resid_post.1"), cache["resid_post.1"], rtol=1e-2, atol=1e-2)
    with pytest.raises(InterpError, match="another config"):
        write_cache(tmp_path / "cache.zarr", model.cache_blocks(PROMPTS, sites="resid_post.2", block_size=2))
    with pytest.raises(InterpError, match="at least one block"):
        write_cache(tmp_path / "none.zarr", replace(blocks, ranges=[]))


def test_a_store_does_not_go_on_with_other_images(tmp_path: Path, vision_folder: Callable[[str], Path]) -> None:
    """One text with several images: the token ids do not tell them apart."""
    model = StandardizedTransformer(vision_folder("llava"), device_map="cpu")
    texts = ["<image> dog"] * 3

    def cached(seeds: list[int]) -> Any:
        images = [image(seed) for seed in seeds]
        return model.cache_blocks(texts, images=images, sites="resid_post.1", positions="last", block_size=2)

    def extracted(seeds: list[int]) -> Any:
        prompts = [Prompt(text, images=(image(seed),)) for text, seed in zip(texts, seeds, strict=True)]
        return Extraction("resid_post.1").blocks(model, prompts, block_size=2)

    for index, blocks in enumerate((cached, extracted)):
        path = tmp_path / f"{index}.zarr"
        assert write_cache(path, blocks([0, 1, 2])) == {"blocks": 2, "written": 2}
        assert write_cache(path, blocks([0, 1, 2])) == {"blocks": 2, "written": 0}
        with pytest.raises(InterpError, match="another config"):
            write_cache(path, blocks([0, 1, 3]))
    path = tmp_path / "a.png"
    image(0).save(path)
    late = Extraction("resid_post.1").blocks(model, [Prompt(texts[0], images=(path,))])
    image(1).save(path)
    with pytest.raises(InterpError, match="images of prompt 0 have changed"):
        late.block(0)

"""Queries of prompts with images: attention to images is cut, a patch goes into them; over a cache as without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.compat.easyroutine import HookedModel, Intervention
from tests.vision import FAMILIES, image

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword"
)  # transformers'
CHOSEN = ("llava", "gemma3", "qwen2_vl")
COUPLES = [[0, 0], [1, 1], [3, 1], [2, 2]]


def processed(model: HookedModel, family: str, seeds: list[int]) -> dict[str, Any]:
    """A batch of two prompts of different lengths, each with an image."""
    texts = [f"king {FAMILIES[family].image} hello", f"{FAMILIES[family].image} hello king book"]
    given = model.get_processor()(
        text=texts, images=[[image(seed)] for seed in seeds], padding=True, return_tensors="pt",
        return_mm_token_type_ids=True,
    )  # fmt: skip
    return dict(given)


@pytest.mark.parametrize("family", CHOSEN)
@pytest.mark.parametrize("kind", ["block-img-txt", "block-img-img", "std"])
def test_ablations(seeing: Callable[[str], HookedModel], family: str, kind: str) -> None:
    model = seeing(family)
    given = processed(model, family, [0, 1])
    query: dict[str, Any] = {"type": kind, "head-layer-couple": COUPLES}
    query |= {"elem-to-ablate": "@end-image"} if kind == "std" else {}
    names = ["all", "all-image", "all-text", "end-image"]
    plain, found = (
        model.forward(given, names, ablation_queries=queries, extract_attn_pattern=True) for queries in (None, query)
    )
    for row in range(2):
        tokens = found["token_dict"][row]
        keys = tokens["end-image" if kind == "std" else "all-image"]
        queries = tokens[{"std": "all", "block-img-txt": "all-text", "block-img-img": "all-image"}[kind]]
        length = len(tokens["all"])
        for head in range(4):
            own, before = (each[f"pattern_L0H{head}"][row, :length, :length] for each in (found, plain))
            expected = before.clone()
            if head == 0:
                expected[torch.tensor(queries)[:, None], keys] = 0
                assert before[torch.tensor(queries)[:, None], keys].any()
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    steps = [
        model.generate(
            given, ablation_queries=query, max_new_tokens=3, use_cache=use_cache, eos_token_id=None,
            return_dict_in_generate=True, output_logits=True,
        )["logits"]
        for use_cache in (True, False)
    ]  # fmt: skip
    torch.testing.assert_close(steps[0][0], found["logits"], rtol=1e-3, atol=1e-4)
    for cached, whole in zip(*steps, strict=True):
        torch.testing.assert_close(cached, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", CHOSEN)
def test_pairs(seeing: Callable[[str], HookedModel], family: str) -> None:
    model = seeing(family)
    base, target = ([{**processed(model, family, seeds), "label": torch.tensor([7, 8])}] for seeds in ([0, 1], [2, 3]))
    everything = {"patching_elem": "@all", "layers_to_patch": [0], "activation_type": "resid_in_{}"}
    found = model.compute_patching(["end-image", " last"], base, target, [everything], [[5], [6]], [[7], [8]])
    torch.testing.assert_close(found["target_patched_logits"], found["base_logits"], rtol=1e-3, atol=1e-3)
    images = {"patching_elem": "@all-image", "layers_to_patch": [1, 2], "activation_type": "resid_in_{}"}
    patched = model.compute_patching(["end-image"], base, target, images, batch_saver=lambda others: others)
    assert patched["label"].tolist() == [7, 8] and patched["kl_patched|clean"].shape == (2,)
    held = model.forward(base[0], ["all-image"], extract_resid_in=True)
    given = processed(model, family, [2, 3])
    ways: list[dict[str, Any]] = [
        {"patching_queries": {**images, "patching_activations": held}},
        {
            "interventions": [
                Intervention("full", f"resid_in_{layer}", ["all-image"], held[f"resid_in_{layer}"].nan_to_num())
                for layer in (1, 2)
            ]
        },
    ]
    for way in ways:
        logits: Tensor = model.forward(given, **way)["logits"]
        torch.testing.assert_close(logits, patched["target_patched_logits"], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(logits, model.forward(given)["logits"], atol=1e-3)
        steps = [
            model.generate(
                given, max_new_tokens=3, use_cache=use_cache, eos_token_id=None, return_dict_in_generate=True,
                output_logits=True, **way,
            )["logits"]
            for use_cache in (True, False)
        ]  # fmt: skip
        torch.testing.assert_close(steps[0][0], logits, rtol=1e-3, atol=1e-4)
        for cached, whole in zip(*steps, strict=True):
            torch.testing.assert_close(cached, whole, rtol=1e-3, atol=1e-4)

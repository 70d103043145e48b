"""New tokens behind images are those of transformers, over the key/value cache and by whole passes, patched too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp.activations import generating, steering_vectors
from interp.interventions import Intervention
from interp.model import StandardizedTransformer
from tests.vision import FAMILIES, image
from tests.vision.plain import plain_inputs, prompts_of

Seeing = Callable[[str], StandardizedTransformer]
PICTURES = [image(0), image(1), image(2, 32, 64), image(3)]


# Of Qwen positions behind an image go on from another number; of PaliGemma new tokens are a suffix, not the prefix.
@pytest.mark.parametrize("family", ["qwen2_5_vl", "paligemma", "paligemma2", "gemma3"])
def test_new_tokens_are_those_of_transformers(seeing: Seeing, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeing(family)
    prompts = prompts_of(FAMILIES[family].image, PICTURES)
    if family.startswith("paligemma"):
        del prompts[1]  # of text alone, which it is not gone on from
    patch = Intervention("resid_post.1", "last", "add", torch.ones(model.hidden_size), factor=0.5, steps="every")
    cached, patched = model.run(prompts, max_new_tokens=4), model.run(prompts, patch, max_new_tokens=4)
    for row, prompt in enumerate(prompts):
        inputs: dict[str, Any] = plain_inputs(model, prompt)
        whole = model._module.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert cached.new_ids[row] == whole[0, inputs["input_ids"].shape[1] :].tolist()
    monkeypatch.setattr(generating, "verdict", lambda *_, **__: False)
    slow, both = model.run(prompts, max_new_tokens=4), model.run(prompts, patch, max_new_tokens=4)
    assert slow.new_ids == cached.new_ids and both.new_ids == patched.new_ids
    for fast, plain in ((cached, slow), (patched, both)):
        torch.testing.assert_close(fast.new_logits, plain.new_logits, rtol=1e-3, atol=1e-4, equal_nan=True)
    assert patched.new_ids != cached.new_ids


def test_steering_vectors_lead_from_one_image_to_another(seeing: Seeing) -> None:
    model = seeing("llava")
    text = ["<image> the cat is"] * 2
    found = steering_vectors(
        model, text, text, images=PICTURES[:2], negative_images=PICTURES[2:], sites="resid_post.1"
    )["resid_post.1"]
    reads = [
        model.run(text, images=pictures, read="resid_post.1")["resid_post.1"]
        for pictures in (PICTURES[:2], PICTURES[2:])
    ]
    torch.testing.assert_close(found, (reads[0] - reads[1]).mean(0)[0], rtol=1e-4, atol=1e-4)
    assert float(found.norm()) > 0.01

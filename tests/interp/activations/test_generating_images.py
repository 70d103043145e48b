"""Patched generation behind images: over the key/value cache as by whole passes; steering vectors of images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from interp.activations import generating, steering_vectors
from interp.interventions import Intervention
from tests.vision import image
from tests.vision.seeing import Seeing

Made = Callable[[str], Seeing]


# Of Qwen positions behind an image go on from another number; of PaliGemma new tokens are a suffix, not the prompt.
@pytest.mark.parametrize("family", ["qwen2_5_vl", "paligemma2"])
def test_with_a_cache_as_without_one(seeing: Made, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sees = seeing(family)
    texts, images = sees.texts[1:], sees.images[1:]
    patch = Intervention("resid_post.1", "last", "add", torch.ones(sees.model.hidden_size), steps="every")
    cut = Intervention("scores.2", "last", "knockout", from_positions="image[0].all", steps="every")
    cached = [sees.model.run(texts, edits, images=images, max_new_tokens=3) for edits in ((), patch, cut)]
    monkeypatch.setattr(generating, "verdict", lambda *_, **__: False)
    for fast, edits in zip(cached, ((), patch, cut), strict=True):
        plain = sees.model.run(texts, edits, images=images, max_new_tokens=3)
        assert fast.new_ids == plain.new_ids
        torch.testing.assert_close(fast.new_logits, plain.new_logits, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert not torch.allclose(cached[0].new_logits, cached[1].new_logits, equal_nan=True)  # type: ignore[arg-type]
    assert not torch.allclose(cached[0].new_logits, cached[2].new_logits, equal_nan=True)  # type: ignore[arg-type]


def test_steering_vectors_lead_from_one_image_to_another(seeing: Made) -> None:
    model, text = seeing("llava").model, ["<image> the cat is"] * 2
    ours, others = [image(0), image(1)], [image(2), image(3)]
    found = steering_vectors(model, text, text, images=ours, negative_images=others, sites="resid_post.1")
    first, second = (model.run(text, images=own, read="resid_post.1")["resid_post.1"] for own in (ours, others))
    torch.testing.assert_close(found["resid_post.1"].double(), (first - second).mean(0)[0], rtol=1e-5, atol=1e-5)
    assert float(found["resid_post.1"].norm()) > 0.01

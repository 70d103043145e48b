"""New tokens behind images: transformers' own, with an ablation and with a patch, over a cache and without one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.interventions import Intervention
from interp.prompts import Prompt
from tests.vision import FAMILIES, image
from tests.vision.seeing import Seeing

SeeingFamily = Callable[[str], Seeing]
_STEPS = 4


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_is_that_of_transformers(family: str, seeing: SeeingFamily) -> None:
    ours = seeing(family)
    first = 1 if ours.images_first else 0  # PaliGemma's text alone is refused
    texts, images = ours.texts[first:], ours.images[first:]
    expected = [ours.plain.generated(*one, _STEPS) for one in zip(texts, images, strict=True)]
    assert ours.model.run(texts, images=images, max_new_tokens=_STEPS).new_ids == expected
    with (
        torch.no_grad(),
        ours.model.generate(texts[-1], images=images[-1], max_new_tokens=_STEPS, do_sample=False) as on,
    ):
        ids = on.result.save()
    assert ids[0, -_STEPS:].tolist() == expected[-1]
    if ours.images_first:
        with pytest.raises(InterpError, match="Give the prompt an image"):
            ours.model.run(ours.texts[0], max_new_tokens=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_an_ablation_and_a_patch_is_that_without_a_cache(family: str, seeing: SeeingFamily) -> None:
    ours = seeing(family)
    texts, images = ours.texts[1:], ours.images[1:]
    other = Prompt(ours.texts[1].replace("dog", "cat"), images=(image(7),))
    (source,) = ours.plain.outputs(other.text, list(other.images), [ours.plain.layers[1]])
    edits = [
        Intervention("resid_post.0", "image.all", "zero"),
        Intervention("resid_post.1", "text.last", "set", {"prompt": other, "position": "last"}),
    ]
    found = ours.model.run(texts, edits, images=images, max_new_tokens=_STEPS).new_ids
    for new, text, own in zip(found or [], texts, images, strict=True):
        ids = ours.plain.inputs(text, own)["input_ids"][0]
        seen, last = ids == ours.model._module.config.image_token_id, len(ids) - 1

        def edited(layer: int, output: Tensor, seen: Tensor = seen, last: int = last) -> Tensor:
            output = output.clone()
            if layer == 0:
                output[0, : len(seen)][seen] = 0
            elif layer == 1:
                output[0, last] = source[0, -1]
            return output

        assert new == ours.plain.greedy(text, own, _STEPS, edited)
        assert ours.plain.greedy(text, own, _STEPS) == ours.plain.generated(text, own, _STEPS)


def test_what_enters_a_layer_is_more_than_what_left_the_one_below_in_qwen3_vl(seeing: SeeingFamily) -> None:
    ours = seeing("qwen3_vl")
    _, cache = ours.model.run_with_cache(ours.texts[1], images=ours.images[1])
    seen = ours.plain.inputs(ours.texts[1], ours.images[1])["input_ids"][0] == ours.model._module.config.image_token_id
    entering, left = cache["resid_pre.1"][0], cache["resid_post.0"][0]
    assert torch.equal(entering[~seen], left[~seen]) and not torch.isclose(entering[seen], left[seen]).all(-1).any()
    assert torch.equal(cache.accumulated_residual()["resid_pre.1"][0], entering)

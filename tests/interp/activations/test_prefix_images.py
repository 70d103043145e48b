"""Behind a frozen prefix with an image texts give what whole prompts give; where they would not, it is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from interp import InterpError
from interp.interventions import Intervention
from interp.prompts import Prompt
from tests.vision import FAMILIES, image
from tests.vision.seeing import Seeing

Made = Callable[[str], Seeing]
ENDS = [" is a cat", " the dog and the king"]


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_questions_of_one_image_give_what_whole_prompts_give(seeing: Made, family: str) -> None:
    sees, text = seeing(family), f"{FAMILIES[family].image} the cat"
    model = sees.model
    prefix = model.freeze_prefix(text, images=image(0))
    whole = [Prompt(text + end, images=(image(0),)) for end in ENDS]
    behind = model.run(ENDS, prefix=prefix, read="resid_post.1", max_new_tokens=3)
    expected = model.run(whole, read="resid_post.1", max_new_tokens=3)
    assert behind.new_ids == expected.new_ids
    torch.testing.assert_close(behind["resid_post.1"], expected["resid_post.1"])
    for row, prompt in enumerate(whole):
        torch.testing.assert_close(behind.logits[row, 0], sees.plain.logits(prompt.text, prompt.images)[-1])
    patch = Intervention("resid_post.0", "last", "scale", 0.5)
    torch.testing.assert_close(model.run(ENDS, patch, prefix=prefix).logits, model.run(whole, patch).logits)


def test_each_row_of_a_prefix_has_its_image(seeing: Made) -> None:
    model = seeing("llava").model
    prefix = model.freeze_prefix(["<image> the cat"] * 2, images=[image(0), image(1)])
    ends, whole = [" is a cat"] * 2, ["<image> the cat is a cat"] * 2
    behind = model.run(ends, prefix=prefix)
    torch.testing.assert_close(behind.logits, model.run(whole, images=[image(0), image(1)]).logits)
    # The other example is the other image, though their tokens are the same.
    resampled = model.run(ends, Intervention("resid_post.0", "last", "resample"), prefix=prefix)
    others = [Prompt(whole[0], images=(image(seed),)) for seed in (1, 0)]
    swapped = Intervention("resid_post.0", "last", "set", {"prompt": others})
    torch.testing.assert_close(resampled.logits, model.run(whole, swapped, images=[image(0), image(1)]).logits)


@pytest.mark.parametrize("family", ["paligemma", "paligemma2", "qwen2_5_vl"])
def test_images_that_see_or_count_what_follows_are_refused(seeing: Made, family: str) -> None:
    with pytest.raises(InterpError, match="gives other numbers"):
        seeing(family).model.freeze_prefix(f"{FAMILIES[family].image} the cat", images=image(0))


def test_an_image_behind_a_prefix_is_refused(seeing: Made) -> None:
    model = seeing("llava").model
    prefix = model.freeze_prefix("the cat")
    for method in (model.run, model.run_with_cache, model.run_with_hooks):
        with pytest.raises(InterpError, match="prompt 1 has images, and what follows a prefix is text"):
            method(["is", "<image> is"], images=[None, image(0)], prefix=prefix)  # type: ignore[operator]
    with pytest.raises(InterpError, match="some of the prefixes have images, others none"):
        model.freeze_prefix([[5] * 17, Prompt("<image>", images=(image(0),))])

"""Behind a frozen prefix with an image texts give what whole prompts give; where they would not, it is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from interp import InterpError
from interp.interventions import Intervention
from interp.model import StandardizedTransformer
from interp.prompts import Prompt
from tests.vision import FAMILIES, image
from tests.vision.plain import plain_pass

Seeing = Callable[[str], StandardizedTransformer]
ENDS = [" is a cat", " the dog and the king"]


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_questions_of_one_image_give_what_whole_prompts_give(seeing: Seeing, family: str) -> None:
    model, text = seeing(family), f"{FAMILIES[family].image} the cat"
    prefix = model.freeze_prefix(text, images=image(0))
    whole = [Prompt(text + end, images=(image(0),)) for end in ENDS]
    patch = Intervention("resid_post.0", "last", "scale", 0.5)
    behind = model.run(ENDS, prefix=prefix, read="resid_post.1", max_new_tokens=3)
    expected = model.run(whole, read="resid_post.1", max_new_tokens=3)
    assert behind.new_ids == expected.new_ids
    torch.testing.assert_close(behind["resid_post.1"], expected["resid_post.1"], rtol=1e-4, atol=1e-4)
    for row, prompt in enumerate(whole):
        _, logits = plain_pass(model, prompt)
        torch.testing.assert_close(behind.logits[row, 0], logits[-1], rtol=1e-4, atol=1e-4)
    patched, both = model.run(ENDS, patch, prefix=prefix), model.run(whole, patch)
    torch.testing.assert_close(patched.logits, both.logits, rtol=1e-4, atol=1e-4)


def test_a_prefix_has_an_image_a_row(seeing: Seeing) -> None:
    model = seeing("llava")
    prefix = model.freeze_prefix(["<image> the cat"] * 2, images=[image(0), image(1)])
    behind = model.run([" is a cat"] * 2, prefix=prefix)
    whole = model.run(["<image> the cat is a cat"] * 2, images=[image(0), image(1)])
    torch.testing.assert_close(behind.logits, whole.logits, rtol=1e-4, atol=1e-4)
    # The other example is the other image, though their tokens are the same.
    resampled = model.run([" is a cat"] * 2, Intervention("resid_post.0", "last", "resample"), prefix=prefix)
    swapped = model.run(
        ["<image> the cat is a cat"] * 2,
        Intervention("resid_post.0", "last", "set", {"prompt": [prompt(1), prompt(0)]}),
        images=[image(0), image(1)],
    )
    torch.testing.assert_close(resampled.logits, swapped.logits, rtol=1e-4, atol=1e-4)


def prompt(seed: int) -> Prompt:
    return Prompt("<image> the cat is a cat", images=(image(seed),))


@pytest.mark.parametrize("family", ["paligemma", "paligemma2", "qwen2_5_vl"])
def test_images_that_see_or_count_what_follows_are_refused(seeing: Seeing, family: str) -> None:
    with pytest.raises(InterpError, match="gives other numbers"):
        seeing(family).freeze_prefix(f"{FAMILIES[family].image} the cat", images=image(0))


def test_an_image_behind_a_prefix_is_refused(seeing: Seeing) -> None:
    model = seeing("llava")
    prefix = model.freeze_prefix("the cat")
    for method in (model.run, model.run_with_cache, model.run_with_hooks):
        with pytest.raises(InterpError, match="prompt 1 has images, and what follows a prefix is text"):
            method(["is", "<image> is"], images=[None, image(0)], prefix=prefix)  # type: ignore[operator]
    with pytest.raises(InterpError, match="some of the prefixes have images, others none"):
        model.freeze_prefix([[5] * 17, Prompt("<image>", images=(image(0),))])

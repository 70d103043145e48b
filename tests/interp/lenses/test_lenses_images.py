"""Lenses of prompts with images: what each says of the states that plain transformers have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import InterpError
from interp.interventions import Intervention
from interp.lenses import (
    Latents,
    attention_knockout,
    attention_object_lens,
    direct_logit_attribution,
    jacobian_lens,
    logit_lens,
    patchscope_generate,
    patchscope_grid,
    patchscope_lens,
    tuned_lens,
)
from interp.model import StandardizedTransformer
from interp.prompts import Prompt
from interp.translators import AffineMap, GivenSequences, TunedLens
from tests.vision import FAMILIES, image
from tests.vision.seeing import Seeing

Made = Callable[[str], Seeing]
GROUPS = [[[5], [7, 9]]] * 3


def states_at(sees: Seeing, tokens: list[int]) -> Tensor:
    """(layer, prompt, hidden) by plain transformers, at a token of each prompt."""
    found = []
    for text, images, at in zip(sees.texts, sees.images, tokens, strict=True):
        states = sees.plain.outputs(text, images, list(sees.plain.layers))
        found.append(torch.stack([state[0, at] for state in states]))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("family", ["llava", "gemma3", "paligemma"])
def test_what_is_read_is_what_the_states_say(seeing: Made, family: str) -> None:
    sees = seeing(family)
    given: dict[str, Any] = dict(images=sees.images)
    latents = Latents(states_at(sees, [-1] * 3))
    found, expected = logit_lens(sees.model, sees.texts, GROUPS, **given), logit_lens(sees.model, latents, GROUPS)
    np.testing.assert_allclose(found.log_prob, expected.log_prob, rtol=1e-4, atol=1e-4)
    logits = torch.stack([sees.plain.logits(*one)[-1] for one in zip(sees.texts, sees.images, strict=True)])
    np.testing.assert_allclose(found.log_prob[:, -1, 0], logits.log_softmax(-1)[:, 5], rtol=1e-4, atol=1e-4)


def test_what_parts_add_with_an_image(seeing: Made, vision_folder: Callable[[str], Path]) -> None:
    sees, model = seeing("llava"), StandardizedTransformer(vision_folder("llava"), dtype="float32")
    parts = direct_logit_attribution(model, sees.texts, GROUPS, images=sees.images)
    logits = torch.stack([sees.plain.logits(*one)[-1] for one in zip(sees.texts, sees.images, strict=True)])
    np.testing.assert_allclose(parts.logit[:, 0], logits[:, 5], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(parts.contribution.sum(1) + parts.remainder + parts.constant, parts.logit, atol=1e-4)
    attention = parts.contribution[:, list(parts.coordinates["site"]).index("attn_out.1"), 0]
    assert abs(attention).min() > 0 and np.ptp(attention) > 1e-3


def test_an_image_is_read_at_its_tokens(seeing: Made) -> None:
    sees = seeing("llava")
    model, size = sees.model, sees.model.hidden_size
    text, images = sees.texts[2], [sees.images[2]]
    _, cache = model.run_with_cache([text], images=images, sites="resid_post.*", positions="image[1].last")
    latents = Latents(torch.stack([cache[f"resid_post.{layer}"][:, 0] for layer in range(model.num_layers)]))
    given: dict[str, Any] = dict(images=images, positions="image[1].last")
    maps = AffineMap(
        (0, 1), torch.randn(2, size, size, generator=torch.Generator().manual_seed(0)), torch.zeros(2, size)
    )
    lens = TunedLens.of(model)
    for found, expected in (
        (logit_lens(model, [text], GROUPS[:1], **given), logit_lens(model, latents, GROUPS[:1])),
        (jacobian_lens(model, maps, [text], GROUPS[:1], **given), jacobian_lens(model, maps, latents, GROUPS[:1])),
        (tuned_lens(model, lens, [text], GROUPS[:1], **given), tuned_lens(model, lens, latents, GROUPS[:1])),
    ):
        np.testing.assert_allclose(found.log_prob, expected.log_prob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_what_an_image_says_in_another_prompt(seeing: Made, family: str) -> None:
    sees = seeing(family)
    given: dict[str, Any] = dict(images=sees.images)
    latents = Latents(states_at(sees, [-1] * 3))
    for lens in (patchscope_lens, patchscope_grid):
        found = lens(sees.model, sees.texts, "cat", None, GROUPS, **given)
        expected = lens(sees.model, latents, "cat", None, GROUPS)
        np.testing.assert_allclose(found.log_prob, expected.log_prob, rtol=1e-4, atol=1e-4)
    found_texts = patchscope_generate(sees.model, sees.texts, "cat", max_new_tokens=2, **given)
    assert found_texts.texts == patchscope_generate(sees.model, latents, "cat", max_new_tokens=2).texts


def test_several_sources_of_an_example_have_images_each(seeing: Made) -> None:
    model, text = seeing("llava").model, "<image> the cat"
    mean = patchscope_lens(model, [[text, text]], "cat", None, GROUPS[:1], images=[[image(0), image(1)]])
    _, cache = model.run_with_cache([text] * 2, images=[image(0), image(1)], sites="resid_post.*", positions="last")
    states = torch.stack([cache[f"resid_post.{layer}"][:, 0].float().mean(0) for layer in range(model.num_layers)])
    expected = patchscope_lens(model, Latents(states[:, None]), "cat", None, GROUPS[:1])
    np.testing.assert_allclose(mean.log_prob, expected.log_prob, rtol=1e-4, atol=1e-4)
    with pytest.raises(InterpError, match="an entry for each of 1 examples, and in one of several prompts an entry"):
        patchscope_lens(model, [[text, text]], "cat", images=image(0))


def test_attention_receives_what_an_image_gave(seeing: Made) -> None:
    model, text = seeing("gemma3").model, f"{FAMILIES['gemma3'].image} the cat"
    given: dict[str, Any] = dict(window=1, layers=[1])
    found = attention_object_lens(model, [text], "cat", "last", GROUPS[:1], images=[image(0)], **given)
    read = model.run([text], images=[image(0)], read="attn_in.1")["attn_in.1"]
    held = Latents(read[:, 0][None], layers=[1])
    expected = attention_object_lens(model, held, "cat", "last", GROUPS[:1], **given)
    np.testing.assert_allclose(found.log_prob, expected.log_prob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "gemma3", "paligemma"])
def test_a_knockout_is_what_an_intervention_gives(seeing: Made, family: str) -> None:
    sees = seeing(family)
    # Same tokens, other images; and a text without any.
    texts, images = [sees.texts[1]] * 2, [[image(0)], [image(1)]]
    found = attention_knockout(
        sees.model, texts, {"image": "image[0].all", "text": ":-1"}, GROUPS[:2], images=images, window=None
    )
    for index, keys in enumerate(["image[0].all", ":-1"]):
        cut = Intervention("scores.*", "last", "knockout", from_positions=keys)
        logits = sees.model.run(texts, cut, images=images).logits[:, 0]
        np.testing.assert_allclose(found.log_prob[:, 0, index, 0], logits.log_softmax(-1)[:, 5], rtol=1e-4, atol=1e-4)
    whole = [sees.plain.logits(*one)[-1].log_softmax(-1)[5] for one in zip(texts, images, strict=True)]
    np.testing.assert_allclose(found.baseline[:, 0], torch.stack(whole), rtol=1e-4, atol=1e-4)
    assert abs(found.baseline[0] - found.baseline[1]).max() > 1e-3


def test_images_that_look_ahead_may_be_cut_from_what_follows(seeing: Made) -> None:
    """PaliGemma's image sees the text behind it; in a causal family that edge is not there, and the run says so."""
    paligemma, text = seeing("paligemma").model, "a dog"
    ahead: dict[str, Any] = dict(window=None, query_positions="image[0].all")
    found = attention_knockout(paligemma, text, {"text": "text.all"}, GROUPS[:1], images=image(0), **ahead)
    cut = Intervention("scores.*", "image[0].all", "knockout", from_positions="text.all")
    logits = paligemma.run(text, cut, images=image(0)).logits[:, 0]
    np.testing.assert_allclose(found.log_prob[:, 0, 0, 0], logits.log_softmax(-1)[:, 5], rtol=1e-4, atol=1e-4)
    assert abs(found.log_prob[0, 0, 0] - found.baseline[0]).max() > 1e-3
    everything = {"prompt": ":"}
    for refused in (
        lambda: attention_knockout(paligemma, text, everything, GROUPS[:1], images=image(0), window=None),
        lambda: paligemma.run(text, Intervention("scores.0", "last", "knockout", from_positions=":"), images=image(0)),
    ):
        with pytest.raises(InterpError, match="a softmax over nothing is not defined"):
            refused()


def test_where_images_would_be_left_out_they_are_refused(seeing: Made) -> None:
    model = seeing("llava").model
    states, seen = Latents(torch.zeros(3, 1, 32)), Prompt("<image> the cat", images=(image(0),))
    with pytest.raises(InterpError, match="images: they are of prompts, and `Latents` are given"):
        logit_lens(model, states, GROUPS[:1], images=[image(0)])
    with pytest.raises(InterpError, match="images: they are of prompts, and `Latents` are given"):
        patchscope_lens(model, states, "cat", images=[image(0)])
    with pytest.raises(InterpError, match="target_prompts: prompt 0 has images, and states are written into texts"):
        patchscope_lens(model, "the cat", seen, None, GROUPS[:1])
    with pytest.raises(InterpError, match="expected the token ids of a prompt, got Prompt"):
        GivenSequences.of(model.tokenizer, [seen])  # type: ignore[list-item]

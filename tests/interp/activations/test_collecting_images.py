"""Collecting from prompts with images: what plain transformers give each alone, beside prompts on the fast way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import InterpError
from interp.activations import collect, collecting
from interp.activations.prompt_batches import encoded_prompts
from interp.forward import batch as batching
from interp.model import StandardizedTransformer
from interp.prompts import Encoded
from interp.sites import Site
from tests.vision import FAMILIES, image
from tests.vision.plain import plain_pass, prompts_of

Seeing = Callable[[str], StandardizedTransformer]
PICTURES = [image(0), image(1), image(2, 32, 64), image(3)]


def given(model: StandardizedTransformer, family: str) -> tuple[list[Encoded], list[list[int]]]:
    """Prompts with one image, none, two, and another one; at their first token, one of an image, and their last."""
    encoded = encoded_prompts(model, prompts_of(FAMILIES[family].image, PICTURES))
    return encoded, [[0, len(one.input_ids) // 2, len(one.input_ids) - 1] for one in encoded]


# Gemma 3's image tokens see each other, PaliGemma's whole prompt sees itself, Qwen counts rows and columns.
@pytest.mark.parametrize("family", ["llava", "gemma3", "paligemma", "qwen2_5_vl", "idefics3"])
def test_gives_what_each_prompt_has_alone(seeing: Seeing, family: str) -> None:
    model = seeing(family)
    encoded, positions = given(model, family)
    ids, media = [one.input_ids for one in encoded], [one.media for one in encoded]
    found = collect(model, ids, "resid_post.*", positions, media=media)["resid_post"]
    for row, prompt in enumerate(prompts_of(FAMILIES[family].image, PICTURES)):
        states, _ = plain_pass(model, prompt)
        assert states[0].shape[0] == len(ids[row])
        expected = torch.stack([state[positions[row]] for state in states])
        torch.testing.assert_close(found[:, row], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[:, 0], found[:, 3], atol=1e-2)  # of one text, with another image


def test_inside_attention_it_gives_what_a_cache_has(seeing: Seeing) -> None:
    model = seeing("gemma3")
    encoded, positions = given(model, "gemma3")
    sites = ["pattern.1", "z.0"]
    media = [one.media for one in encoded]
    found = collect(model, [one.input_ids for one in encoded], sites, positions, media=media)
    prompts = prompts_of(FAMILIES["gemma3"].image, PICTURES)
    _, cache = model.run_with_cache(prompts, sites=sites, positions=positions)
    torch.testing.assert_close(
        found["pattern"][0].transpose(1, 2), cache["pattern.1"], rtol=1e-4, atol=1e-5, equal_nan=True
    )
    torch.testing.assert_close(found["z"][0], cache["z.0"], rtol=1e-4, atol=1e-4)


def test_prompts_without_images_stay_on_the_fast_way(seeing: Seeing, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeing("llava")
    encoded, positions = given(model, "llava")
    fed: list[tuple[bool, list[int]]] = []
    read = collecting.read_tokens

    def watched(of: Any, feed: batching.Feed, *more: Any) -> list[Tensor]:
        fed.append(("pixel_values" in feed.inputs, list(feed.inputs["input_ids"].shape)))
        return read(of, feed, *more)

    monkeypatch.setattr(collecting, "read_tokens", watched)
    texts = encoded_prompts(model, ["the dog and the cat is a king", "the dog and"])
    both = [*encoded, *texts]
    places = [*positions, [1], [1]]
    media = [one.media for one in both]
    done: list[int] = []
    collect(model, [one.input_ids for one in both], "resid_post.1", places, media=media, progress=done.append)
    text = [shape for sees, shape in fed if not sees]
    assert sum(rows * columns for rows, columns in text) < sum(len(one.input_ids) for one in (encoded[1], *texts))
    assert sum(rows for sees, (rows, _) in fed if sees) == 3 and done[-1] == len(both)


def test_memory_that_runs_out_halves_the_budget(seeing: Seeing, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeing("llava")
    encoded, positions = given(model, "llava")
    ids, media = [one.input_ids for one in encoded], [one.media for one in encoded]
    whole = collect(model, ids, "resid_post.1", positions, media=media)["resid_post"]
    read = collecting.read_tokens

    def scarce(of: Any, feed: batching.Feed, *more: Any) -> list[Tensor]:
        if feed.sees and len(feed.inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError
        return read(of, feed, *more)

    monkeypatch.setattr(collecting, "read_tokens", scarce)
    halved = collect(model, ids, "resid_post.1", positions, media=media)["resid_post"]
    torch.testing.assert_close(halved, whole, rtol=1e-4, atol=1e-4)


def test_what_would_leave_an_image_out_is_refused(seeing: Seeing) -> None:
    model = seeing("llava")
    encoded, positions = given(model, "llava")
    ids, media = [one.input_ids for one in encoded], [one.media for one in encoded]
    with pytest.raises(InterpError, match="example 0 has the image token '<image>' and no image"):
        collect(model, ids, "resid_post.1", positions)
    with pytest.raises(InterpError, match="media: expected an entry for each of 4 prompts"):
        collect(model, ids, "resid_post.1", positions, media=media[:1])
    with pytest.raises(InterpError, match=r"media: expected what .* gives .* got 'cat' for prompt 1"):
        collect(model, ids, "resid_post.1", positions, media=[media[0], "cat", *media[2:]])  # type: ignore[list-item]
    with pytest.raises(InterpError, match="remote: prompt 0 has images"):
        collect(model, ids, "resid_post.1", positions, media=media, remote="local")
    with pytest.raises(InterpError, match="is of a vision tower"):
        collect(model, ids, [Site("vision.resid_post", 0)], positions, media=media)
    _, cache = model.run_with_cache(prompts_of("<image>", PICTURES)[:1], sites="embed")
    with pytest.raises(InterpError, match="no image, so the model would read the token itself"):
        model.run(cache.input_ids)
    gemma = seeing("gemma3")
    one, where = given(gemma, "gemma3")
    with pytest.raises(InterpError, match=r"prompt 0 has \d+ tokens, and 1 \w+\. Are they of another prompt"):
        shorter = type(one[0].media)(one[0].media.inputs, {"token_type_ids": [1]})  # type: ignore
        collect(gemma, [one[0].input_ids], "resid_post.1", where[:1], media=[shorter])

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
from interp.forward.batch import Feed
from interp.prompts import Encoded, with_images
from interp.sites import Site
from tests.vision import image
from tests.vision.seeing import Seeing

Made = Callable[[str], Seeing]


def given(sees: Seeing) -> tuple[list[str], list[Any], list[Encoded], list[list[int]]]:
    """Prompts with no image, one, several, and another one; at their first token, one in the middle, and their last."""
    texts, images = [*sees.texts, sees.texts[1]], [*sees.images, [image(7)]]
    encoded = encoded_prompts(sees.model, with_images(texts, images))
    return texts, images, encoded, [[0, len(one.input_ids) // 2, len(one.input_ids) - 1] for one in encoded]


# Gemma 3's image tokens see each other, PaliGemma's whole prompt sees itself, Qwen counts rows and columns.
@pytest.mark.parametrize("family", ["llava", "gemma3", "paligemma", "qwen2_5_vl", "idefics3"])
def test_gives_what_each_prompt_has_alone(seeing: Made, family: str) -> None:
    sees = seeing(family)
    texts, images, encoded, positions = given(sees)
    ids, media = [one.input_ids for one in encoded], [one.media for one in encoded]
    found = collect(sees.model, ids, "resid_post.*", positions, media=media)["resid_post"]
    for row, (text, pictures) in enumerate(zip(texts, images, strict=True)):
        states = sees.plain.outputs(text, pictures, list(sees.plain.layers))
        expected = torch.stack([state[0, positions[row]] for state in states])
        torch.testing.assert_close(found[:, row], expected)
    assert ids[1] == ids[3] and not torch.allclose(found[:, 1], found[:, 3], atol=1e-2)  # with another image


def test_inside_attention_it_gives_what_a_cache_has(seeing: Made) -> None:
    sees = seeing("gemma3")
    texts, images, encoded, positions = given(sees)
    sites = ["pattern.1", "z.0"]
    media = [one.media for one in encoded]
    found = collect(sees.model, [one.input_ids for one in encoded], sites, positions, media=media)
    _, cache = sees.model.run_with_cache(texts, images=images, sites=sites, positions=positions)
    close: dict[str, Any] = dict(rtol=1e-4, atol=1e-5, equal_nan=True)  # attention counts in float32
    torch.testing.assert_close(found["pattern"][0].transpose(1, 2), cache["pattern.1"], **close)
    torch.testing.assert_close(found["z"][0], cache["z.0"], **close)


def test_prompts_without_images_stay_on_the_fast_way(seeing: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    sees = seeing("llava")
    _, _, encoded, positions = given(sees)
    fed: list[tuple[bool, tuple[int, int]]] = []
    read = collecting.read_tokens

    def watched(of: Any, feed: Feed, *more: Any) -> list[Tensor]:
        fed.append(("pixel_values" in feed.inputs, tuple(feed.inputs["input_ids"].shape)))
        return read(of, feed, *more)

    monkeypatch.setattr(collecting, "read_tokens", watched)
    long = encoded_prompts(sees.model, ["the dog and the cat is a king"])
    both, places = [*encoded, *long], [*positions, [1]]
    media, done = [one.media for one in both], []
    collect(sees.model, [one.input_ids for one in both], "resid_post.1", places, media=media, progress=done.append)
    cut = sum(rows * columns for is_seen, (rows, columns) in fed if not is_seen)
    assert cut == len(encoded[0].input_ids) + 2  # up to the last token that is read, without padding
    assert sum(rows for is_seen, (rows, _) in fed if is_seen) == 3 and done[-1] == len(both)


def test_memory_that_runs_out_halves_the_budget(seeing: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    sees = seeing("llava")
    _, _, encoded, positions = given(sees)
    ids, media = [one.input_ids for one in encoded], [one.media for one in encoded]
    whole = collect(sees.model, ids, "resid_post.1", positions, media=media)["resid_post"]
    read, tried = collecting.read_tokens, []

    def scarce(of: Any, feed: Feed, *more: Any) -> list[Tensor]:
        tried.append(len(feed.inputs["input_ids"]))
        if feed.sees and tried[-1] > 1:
            raise torch.OutOfMemoryError
        return read(of, feed, *more)

    monkeypatch.setattr(collecting, "read_tokens", scarce)
    halved = collect(sees.model, ids, "resid_post.1", positions, media=media)["resid_post"]
    torch.testing.assert_close(halved, whole)
    assert max(tried) > 1


def test_what_would_leave_an_image_out_is_refused(seeing: Made) -> None:
    sees = seeing("llava")
    texts, images, encoded, positions = given(sees)
    model, ids, media = sees.model, [one.input_ids for one in encoded], [one.media for one in encoded]
    with pytest.raises(InterpError, match="example 1 has the image token '<image>' and no image"):
        collect(model, ids, "resid_post.1", positions)
    with pytest.raises(InterpError, match="media: expected an entry for each of 4 prompts"):
        collect(model, ids, "resid_post.1", positions, media=media[:1])
    with pytest.raises(InterpError, match=r"media: expected what .* gives .* got 'cat' for prompt 0"):
        collect(model, ids, "resid_post.1", positions, media=["cat", *media[1:]])  # type: ignore[list-item]
    with pytest.raises(InterpError, match="remote: prompt 1 has images"):
        collect(model, ids, "resid_post.1", positions, media=media, remote="local")
    with pytest.raises(InterpError, match="is of a vision tower"):
        collect(model, ids, [Site("vision.resid_post", 0)], positions, media=media)
    _, cache = model.run_with_cache(texts[1], images=images[1], sites="embed")
    with pytest.raises(InterpError, match="no image, so the model would read the token itself"):
        model.run(cache.input_ids)
    one = encoded_prompts(seeing("gemma3").model, with_images(seeing("gemma3").texts[1], image(0)))[0]
    with pytest.raises(InterpError, match=r"prompt 0 has 2 tokens, and \d+ \w+\. Are they of another prompt"):
        collect(seeing("gemma3").model, [[5, 6]], "resid_post.1", [[0]], media=[one.media])

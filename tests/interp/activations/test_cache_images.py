"""Hooks, parts of the residual stream and blocks of caches, of prompts with images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zarr
from torch import Tensor

from interp import InterpError
from interp.interventions import Intervention
from interp.prompts import Prompt
from interp.sites import Site
from pipeline.store import write_cache
from tests.vision import image
from tests.vision.seeing import Seeing

Made = Callable[[str], Seeing]


def halved(tensor: Tensor, site: Site) -> Tensor:
    return tensor * 0.5


@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_a_hook_changes_what_plain_hooks_change(seeing: Made, family: str) -> None:
    sees = seeing(family)
    found = sees.model.run_with_hooks(sees.texts, images=sees.images, hooks=[("resid_post.1", halved)])
    with sees.model.hooks([("resid_post.1", halved)]):
        kept, _ = sees.model.run_with_cache(sees.texts, images=sees.images, sites="embed")
    for row, (text, images) in enumerate(zip(sees.texts, sees.images, strict=True)):
        expected = sees.plain.logits(text, images, edit=lambda layer, output: output * (0.5 if layer == 1 else 1))
        for logits in (found, kept):
            torch.testing.assert_close(logits[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)
            assert logits[row, len(expected) :].isnan().all()


def test_parts_add_up_to_the_stream(seeing: Made) -> None:
    sees = seeing("llava")
    _, cache = sees.model.run_with_cache(sees.texts, images=sees.images)
    parts = cache.decomposed_residual(parts="heads")
    torch.testing.assert_close(
        parts.values.nansum(0), cache["resid_post.2"].nan_to_num(), rtol=1e-4, atol=1e-4, check_dtype=False
    )
    accumulated = cache.accumulated_residual(include_middle=False)
    torch.testing.assert_close(accumulated.values[-1].nan_to_num(), cache["resid_post.2"].nan_to_num())


def test_blocks_have_their_images(seeing: Made, tmp_path: Path) -> None:
    sees = seeing("llava")
    texts, images = [*sees.texts, sees.texts[1]], [*sees.images, [image(7)]]
    _, cache = sees.model.run_with_cache(texts, images=images, sites="resid_post.1", positions="last")
    blocks = sees.model.cache_blocks(texts, images=images, sites="resid_post.1", positions="last", block_size=2)
    write_cache(tmp_path / "cache.zarr", blocks)
    found = torch.tensor(zarr.open(tmp_path / "cache.zarr")["resid_post.1"][:])  # type: ignore[index, call-overload]
    torch.testing.assert_close(found.reshape(4, -1), cache["resid_post.1"][:, 0])


def test_a_value_comes_from_a_run_with_an_image(seeing: Made, tmp_path: Path) -> None:
    sees = seeing("gemma3")
    model, text, path = sees.model, sees.texts[1], tmp_path / "other.png"
    image(5).save(path)
    other = Prompt(text, images=(path,))
    patch = Intervention("resid_post.0", "image[0].all last", "set", {"prompt": other})
    assert Intervention.from_json(patch.to_json()) == patch and str(path) in patch.to_json()
    found = model.run([text, text], patch, images=[image(0), image(1)]).logits
    states = sees.plain.outputs(text, [image(5)], list(sees.plain.layers))[0][0]
    _, cache = model.run_with_cache(text, images=image(0), sites="embed", positions="image[0].all")
    tokens = [*cache.positions[0], len(states) - 1]

    def edit(layer: int, output: Tensor) -> Tensor:
        if layer:
            return output
        new = output.clone()
        new[0, tokens] = states[tokens]
        return new

    for row in range(2):
        expected = sees.plain.logits(text, [image(row)], edit)[-1]
        torch.testing.assert_close(found[row, 0], expected, rtol=1e-4, atol=1e-4)
    held = Intervention("resid_post.0", "last", "set", {"prompt": Prompt(text, images=(image(0),))})
    with pytest.raises(InterpError, match=r"an image in memory \(Image\) cannot be written out. Save it"):
        held.to_json()
    assert held == Intervention("resid_post.0", "last", "set", {"prompt": Prompt(text, images=(image(0),))})
    assert held != Intervention("resid_post.0", "last", "set", {"prompt": Prompt(text, images=(image(1),))})


def test_an_example_is_resampled_from_another_image(seeing: Made) -> None:
    model, texts = seeing("llava").model, ["<image> the cat is"] * 2
    resample = Intervention("resid_post.1", "last", "resample")
    found = model.run(texts, resample, images=[image(0), image(1)]).logits
    others = [Prompt(texts[0], images=(image(seed),)) for seed in (1, 0)]
    expected = model.run(
        texts, Intervention("resid_post.1", "last", "set", {"prompt": others}), images=[image(0), image(1)]
    )
    torch.testing.assert_close(found, expected.logits)
    with pytest.raises(InterpError, match="there is no other example to resample from"):
        model.run(texts, resample, images=[image(0), image(0)])


def test_patterns_of_padded_prompts_in_float64(seeing: Made) -> None:
    """Families take the softmax in float32, where the least float64 is minus infinity: padding would have NaN."""
    sees = seeing("llava")
    cut = Intervention("scores.0", "last", "knockout", from_positions="first")
    together = sees.model.run(sees.texts, [cut], images=sees.images).logits
    _, cache = sees.model.run_with_cache(
        sees.texts, images=sees.images, sites="pattern.0 resid_post.2", positions="last"
    )
    for row, (text, images) in enumerate(zip(sees.texts, sees.images, strict=True)):
        torch.testing.assert_close(together[row], sees.model.run(text, [cut], images=images).logits[0])
        expected = sees.plain.outputs(text, images, list(sees.plain.layers))[-1][0, -1]
        torch.testing.assert_close(cache["resid_post.2"][row, 0], expected, rtol=1e-4, atol=1e-4)

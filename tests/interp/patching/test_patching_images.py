"""Pairs of prompts with images: grids, paths and estimates are what single interventions give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import InterpError
from interp.interventions import Intervention
from interp.patching import activation_patching, attribution_patching, edge_attribution_patching, path_patching
from interp.patching.circuits import exact_edge_effects, run_circuits
from interp.patching.computation_graph import ComputationGraph
from interp.prompts import Prompt
from tests.vision import FAMILIES, image
from tests.vision.seeing import Seeing

Made = Callable[[str], Seeing]
OURS, OTHERS = [image(0), image(1), None], [image(2), image(3), None]


def difference(logits: Tensor) -> Tensor:
    return logits[:, 5] - logits[:, 7]


def pairs(family: str) -> tuple[list[str], list[str]]:
    """Of one text with two images, twice; and of texts alone."""
    mark = FAMILIES[family].image
    seen = [f"{mark} the cat is", f"{mark} a dog"]
    return [*seen, "the cat dog"], [*seen, "a cat dog"]


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_a_grid_is_what_single_interventions_give(seeing: Made, family: str) -> None:
    model, (clean, corrupted) = seeing(family).model, pairs(family)
    given: dict[str, Any] = dict(images=OURS, corrupted_images=OTHERS, metric=difference, layers=[0, 1])
    grid = activation_patching(model, clean, corrupted, ["resid_post", "attn_out"], {"end": [-2, "last"]}, **given)
    ours = [Prompt(text, images=() if one is None else (one,)) for text, one in zip(clean, OURS, strict=True)]
    theirs = [Prompt(text, images=() if one is None else (one,)) for text, one in zip(corrupted, OTHERS, strict=True)]
    for index, kind in enumerate(["resid_post", "attn_out"]):
        for layer in (0, 1):
            write = Intervention(f"{kind}.{layer}", "-2 last", "set", {"prompt": ours})
            patched = difference(model.run(theirs, write).logits[:, 0])
            torch.testing.assert_close(
                torch.tensor(grid.patched[:, index, layer, 0, 0]).double(), patched, rtol=1e-4, atol=1e-4
            )
    for given, prompts in ((grid.clean, ours), (grid.corrupted, theirs)):
        alone = [difference(seeing(family).plain.logits(one.text, one.images)[-1:]) for one in prompts]
        torch.testing.assert_close(torch.tensor(given[:, 0]).double(), torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert abs(grid.clean - grid.corrupted).min() > 1e-3


def test_the_tokens_of_an_image_are_a_cell(seeing: Made) -> None:
    model = seeing("llava").model
    text = ["<image> the cat is", "a <image> dog"]
    given: dict[str, Any] = dict(images=OURS[:2], corrupted_images=OTHERS[:2], metric=difference)
    places = {"image": "image[0].all", "text": "text.all"}
    grid = activation_patching(model, text, text, "resid_pre", places, layers=[0], **given).patched[:, 0, :, 0]
    whole = activation_patching(model, text, text, "resid_pre", None, layers=[0], **given)
    # At the bottom all that the two runs differ in is the image.
    torch.testing.assert_close(torch.tensor(grid[:, 0]), torch.tensor(whole.clean[:, 0]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(grid[:, 1]), torch.tensor(whole.corrupted[:, 0]), rtol=1e-4, atol=1e-4)
    heads = activation_patching(model, text, text, "z", "last", heads="all", layers=[1], **given)
    for head in range(model.num_heads):
        prompts = [Prompt(one, images=(own,)) for one, own in zip(text, OURS[:2], strict=True)]
        run = model.run(text, Intervention(f"z.1.h{head}", "last", "set", {"prompt": prompts}), images=OTHERS[:2])
        expected = difference(run.logits[:, 0]).float()
        found = torch.tensor(heads.patched[:, 0, 0, head, 0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_path_is_what_two_runs_give(seeing: Made) -> None:
    model, text = seeing("llava").model, ["<image> the cat is", "a <image> dog"]
    found = path_patching(
        model, text, text, "mlp_out", "resid_post.-1", images=OURS[:2], corrupted_images=OTHERS[:2], metric=difference
    )
    last = model.num_layers - 1
    read = ["mlp_out.0", f"resid_post.{last}"]
    clean, base = (model.run(text, images=own, read=read) for own in (OURS[:2], OTHERS[:2]))
    # The direct path to the end of the stream: what the sender writes more goes straight there.
    direct = base[read[1]] + clean[read[0]] - base[read[0]]
    expected = difference(model.readout(direct[:, 0])).float().detach()
    torch.testing.assert_close(torch.tensor(found.patched[:, 0, 0]), expected, rtol=1e-4, atol=1e-4)


def test_estimates_are_differences_times_gradients(seeing: Made) -> None:
    model, (clean, corrupted) = seeing("paligemma").model, pairs("paligemma")  # every token sees every other
    given: dict[str, Any] = dict(images=OURS[:2], corrupted_images=OTHERS[:2])
    estimate = attribution_patching(
        model, clean[:2], corrupted[:2], "resid_post", "last", layers=[1], metric=difference, **given
    )
    theirs = model.run(clean[:2], images=OURS[:2], read="resid_post.1")
    ours = model.run(
        corrupted[:2], images=OTHERS[:2], read="resid_post.1",
        gradients_of=lambda logits, _: difference(logits[:, -1]),
    )  # fmt: skip
    assert ours.gradients is not None and ours.metric is not None
    change = theirs["resid_post.1"] - ours["resid_post.1"]
    expected = ours.metric + (change * ours.gradients["resid_post.1"]).sum((1, 2))
    found = torch.tensor(estimate.patched[:, 0, 0, 0]).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # On a way of many steps, what a patch of everything does is what the two runs differ by.
    way = attribution_patching(
        model, clean[:2], corrupted[:2], "resid_pre", None, layers=[0], metric=difference, steps=12, **given
    )
    reached = torch.tensor(way.patched[:, 0, 0] - way.corrupted[:, 0])
    torch.testing.assert_close(reached, torch.tensor((way.clean - way.corrupted)[:, 0]), rtol=0.05, atol=0.02)


def test_what_is_no_way_between_embeddings_is_refused(seeing: Made) -> None:
    model, (clean, corrupted) = seeing("qwen3_vl").model, pairs("qwen3_vl")
    given: dict[str, Any] = dict(images=OURS[:2], corrupted_images=OTHERS[:2], metric=difference, layers=[1])
    with pytest.raises(InterpError, match=r"shows its layers more than embeddings.* Take way='sites', or steps=None"):
        attribution_patching(model, clean[:2], corrupted[:2], "resid_post", "last", steps=2, **given)
    attribution_patching(model, clean[:2], corrupted[:2], "resid_post", "last", steps=1, way="sites", **given)


def test_edges_of_images_are_what_their_circuits_say(seeing: Made) -> None:
    model, (clean, corrupted) = seeing("gemma3").model, pairs("gemma3")
    given: dict[str, Any] = dict(images=OURS, corrupted_images=OTHERS, metric=difference)
    graph = ComputationGraph.of(model)
    ends = run_circuits(model, clean, corrupted, [graph.exists, []], **given)
    whole = activation_patching(model, clean, corrupted, "resid_post", "last", layers=[0], **given)
    np.testing.assert_allclose(ends[0], whole.clean[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ends[1], whole.corrupted[:, 0], rtol=1e-4, atol=1e-4)
    # What the last MLP says to the logits, by hand.
    edge, last = "mlp_out.2 -> logits", model.num_layers - 1
    sites = ["mlp_out.2", f"resid_post.{last}"]
    ours, theirs = (model.run(text, images=own, read=sites) for text, own in ((clean, OURS), (corrupted, OTHERS)))
    change, at = (theirs[sites[0]] - ours[sites[0]])[:, 0], ours[sites[1]][:, 0].clone().requires_grad_()
    measured = difference(model.readout(at))
    (gradient,) = torch.autograd.grad(measured.sum(), at)
    place = tuple(np.argwhere(graph.mask([edge]))[0])
    exact = exact_edge_effects(model, clean, corrupted, [edge], **given).score[:, *place]
    patched = difference(model.readout(at.detach() + change)) - measured
    np.testing.assert_allclose(exact, patched.detach(), rtol=1e-3, atol=1e-4)
    estimate = edge_attribution_patching(model, clean, corrupted, **given).score[:, *place]
    np.testing.assert_allclose(estimate, (change * gradient).sum(1), rtol=1e-3, atol=1e-4)
    assert abs(exact).min() > 1e-3


def test_images_that_layers_are_shown_besides_have_no_edges(seeing: Made) -> None:
    model, (clean, corrupted) = seeing("qwen3_vl").model, pairs("qwen3_vl")
    given: dict[str, Any] = dict(images=OURS[:1], corrupted_images=OTHERS[:1], metric=difference)
    for function, more in ((edge_attribution_patching, ()), (run_circuits, ([[]],))):
        with pytest.raises(InterpError, match=r"do not add up to the residual stream|shows its layers more than"):
            function(model, clean[:1], corrupted[:1], *more, **given)

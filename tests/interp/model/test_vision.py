"""Models that see against plain transformers: logits, sites, the vision tower, in runs and in traces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.architectures import vision_layout
from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.model.processor import load_processor
from interp.model.verify import failures, prove
from interp.prompts import Prompt
from tests.vision import FAMILIES, image
from tests.vision.seeing import Seeing

SeeingFamily = Callable[[str], Seeing]
_WITH_STREAM = [family for family in FAMILIES if family != "chameleon"]


def _close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_with_no_one_and_several_images_equal_single_prompts(
    family: str, side: str, seeing: SeeingFamily
) -> None:
    ours = seeing(family)
    result = ours.model.run(ours.texts, images=ours.images, positions="all", padding_side=side)  # type: ignore[arg-type]
    assert result.logits is not None
    for found, text, images in zip(result.logits, ours.texts, ours.images, strict=True):
        expected = ours.plain.logits(text, images)
        assert _close(found[: len(expected)], expected)
        assert found[len(expected) :].isnan().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_what_hooks_see(family: str, seeing: SeeingFamily) -> None:
    ours, layers = seeing(family), seeing(family).plain.layers
    parts = [*layers, *(layer.mlp for layer in layers)]
    sites = "embed resid_pre.0 resid_post.* mlp_in.1"
    logits, cache = ours.model.run_with_cache(ours.texts[1:], images=ours.images[1:], sites=sites)
    for row, (text, images) in enumerate(zip(ours.texts[1:], ours.images[1:], strict=True)):
        found = ours.plain.outputs(text, images, parts)
        length = found[0].shape[1]
        for layer in range(len(layers)):
            assert _close(cache[f"resid_post.{layer}"][row, :length], found[layer][0])
        assert _close(layers[1].mlp(cache["mlp_in.1"][row, :length]), found[len(layers) + 1][0])
        assert _close(cache["embed"][row, :length], cache["resid_pre.0"][row, :length])
        assert _close(logits[row, :length], ours.plain.logits(text, images))


@pytest.mark.parametrize("family", FAMILIES)
def test_traces_take_images_beside_texts(family: str, seeing: SeeingFamily) -> None:
    ours, model = seeing(family), seeing(family).model
    expected = [ours.plain.logits(text, images) for text, images in zip(ours.texts, ours.images, strict=True)]
    with torch.no_grad(), model.trace(ours.texts[1], images=ours.images[1]):
        one = model.logits.clone().save()
    assert _close(one[0], expected[1])
    if ours.images_first:  # neither padded nor beside prompts without an image
        with pytest.raises(InterpError, match="Trace them apart"), model.trace(ours.texts, images=ours.images):
            pass
        alone = pytest.raises(InterpError, match="Trace prompts of one length together")
        with alone, torch.no_grad(), model.trace(ours.texts[1:], images=ours.images[1:]):
            model.logits.save()
        with torch.no_grad(), model.trace([ours.texts[1]] * 2, images=[ours.images[1][0], [image(4)]]):
            two = model.logits.clone().save()
        assert _close(two[1], ours.plain.logits(ours.texts[1], [image(4)])) and _close(two[0], expected[1])
        return
    with torch.no_grad(), model.trace(ours.texts, images=[None, ours.images[1][0], ours.images[2]]):
        several = model.logits.clone().save()
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(ours.texts[0]):
            first = model.logits.clone().save()
        with tracer.invoke(Prompt(ours.texts[2], images=tuple(ours.images[2]))):
            last = model.logits.clone().save()
    for found, logits in zip([*several, first[0], last[0]], [*expected, expected[0], expected[2]], strict=True):
        assert _close(found[-len(logits) :], logits)


@pytest.mark.parametrize("family", _WITH_STREAM)
def test_the_residual_stream_of_the_tower_is_read_and_written(family: str, seeing: SeeingFamily) -> None:
    ours, model = seeing(family), seeing(family).model
    text, images = ours.texts[2], ours.images[2]
    towers = ("model.vision_tower", "model.vision_model", "model.visual")
    inside = [part for path, part in ours.plain.model.named_modules() if path.startswith(towers)]
    layers = next(part for part in inside if isinstance(part, torch.nn.ModuleList))
    expected = ours.plain.outputs(text, images, layers)
    sites = ["resid_post.0", "vision.resid_post.1", "vision.resid_pre.1", "vision.resid_post.0"]
    assert [str(site) for site in model.in_order(sites)] == [sites[3], sites[2], sites[1], sites[0]]
    with torch.no_grad(), model.trace(text, images=images):
        first = model.read("vision.resid_post.0").clone().save()
        between = model.read("vision.resid_pre.1").clone().save()
        last = model.read("vision.resid_post.-1").clone().save()
        projected = model.projector.output
        projected = (projected if isinstance(projected, Tensor) else projected[0]).clone().save()
    assert _close(first, expected[0]) and _close(between, expected[0]) and _close(last, expected[1])
    assert projected.shape[-1] == model.hidden_size and model.num_vision_layers == 2

    hook = layers[0].register_forward_hook(
        lambda part, args, output: output * 0.5 if isinstance(output, Tensor) else (output[0] * 0.5, *output[1:]),
        prepend=True,  # before transformers keeps hidden states, of which the model may take one
    )
    changed = ours.plain.logits(text, images)
    hook.remove()
    with torch.no_grad(), model.trace(text, images=images):
        model.write("vision.resid_post.0", model.read("vision.resid_post.0") * 0.5)
        written = model.logits.clone().save()
    assert _close(written[0], changed) and not _close(written[0], ours.plain.logits(text, images))


def test_what_is_not_there_is_refused(
    seeing: SeeingFamily, standardized: Callable[[str], StandardizedTransformer]
) -> None:
    model, text = seeing("llava").model, standardized("llama")
    with pytest.raises(InterpError, match="1 of them in a prompt with 0 placeholders '<image>'"):
        model.run("no place for it", images=[image()])
    for run in (lambda: model.run("<image>", images=[image()], read="vision.resid_post.0"),
                lambda: model.run_with_cache("<image>", images=[image()], sites="vision.resid_post.*")):  # fmt: skip
        with pytest.raises(InterpError, match=r"read and written in a trace"):
            run()
    with pytest.raises(InterpError, match="out of range"):
        model.site("vision.resid_post.2")
    with pytest.raises(InterpError, match="without invokes"), torch.no_grad(), model.trace() as tracer:
        with tracer.invoke("<image>", images=[image()]):
            model.read("vision.resid_post.0").save()
        with tracer.invoke("<image>", images=[image()]):
            pass
    with pytest.raises(InterpError, match="takes no images"), text.trace("hello", images=[image()]):
        pass
    for name in ("vision_tower", "projector"):
        with pytest.raises(InterpError, match="takes no images"):
            getattr(text, name)
    assert not text.has("vision.resid_post.0") and model.has("vision.resid_post.0")
    chameleon = seeing("chameleon").model
    assert not chameleon.has("vision.resid_post.0") and chameleon.vision_tower is not None
    with pytest.raises(InterpError, match="words of its vocabulary"):
        _ = chameleon.projector


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "chameleon"])
def test_proofs_run_with_an_image_in_the_prompt(
    family: str, seeing: SeeingFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = seeing(family).model
    proofs = {proof.identity: proof for proof in prove(model) if proof.identity.endswith(", with an image")}
    assert all(proof.holds for proof in proofs.values())
    names = ["resid_pre == resid_post of the layer before", "resid_mid == resid_pre + attn_out",
             "resid_post == resid_mid + mlp_out", "readout(resid_post) == logits"]  # fmt: skip
    if family != "chameleon":
        names += ["vision.resid_pre == vision.resid_post of the layer before",
                  "an edit of vision.resid_pre changes the logits"]  # fmt: skip
    assert {f"{name}, with an image" for name in names} <= proofs.keys()
    assert any(name.startswith("vision") for name in proofs) == (family != "chameleon")
    if family == "qwen3_vl":  # its tower adds to the stream between layers: a record that does not say so is found out
        layout = replace(vision_layout(model._module.config), between_layers=False)  # type: ignore[type-var]
        monkeypatch.setattr("interp.model.verify.vision_layout", lambda config: layout)
        (failed,) = failures(prove(model))
        assert failed.identity == "resid_pre == resid_post of the layer before, with an image"


def test_a_processor_of_another_size_is_found_out_at_load(vision_folder: Callable[[str], Path]) -> None:
    folder = vision_folder("llava")
    processor: Any = load_processor(folder)
    processor.image_processor.crop_size = {"height": 32, "width": 32}
    processor.image_processor.size = {"shortest_edge": 32}
    with pytest.raises(InterpError, match="cannot run an image as its processor prepares it"):
        StandardizedTransformer(folder, processor=processor, dtype="float32")

"""q, k, v, scores, pattern, z and head_out inside invokes, sessions, generation, edits and gradients.

The twin is transformers' own eager attention, whose weights come out with `output_attentions=True`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import nnsight
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from tests.families.cases import build
from tests.interp.model.plain import IDS, OTHER, PROMPT, encoded, families, positioned, residuals, wrapped

GREEDY = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False)
GET_INTERFACE = AttentionInterface.get_interface


@cache
def eager(family: str) -> Any:
    """The plain model with eager attention."""
    model: Any = build(family)
    if family != "bloom":  # it knows no other
        model.set_attn_implementation("eager")
    return model


@torch.no_grad()
def patterns(family: str, **inputs: Tensor) -> tuple[Tensor, ...]:
    """The attention pattern of every layer."""
    return eager(family)(**inputs, output_attentions=True).attentions


@families
@torch.no_grad()
def test_in_a_trace(family: str) -> None:
    model = wrapped(family)
    with model.trace(IDS):
        seen = [model.attention_probabilities[layer].clone() for layer in range(4)].save()
        logits = model.logits.save()
    for value, expected in zip(seen, patterns(family, input_ids=IDS), strict=True):
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(logits, residuals(family, input_ids=IDS)[1], atol=1e-5, rtol=1e-5)
    assert AttentionInterface.get_interface is GET_INTERFACE, "what was switched on is off again"


@families
@torch.no_grad()
def test_in_invokes(family: str) -> None:
    model = wrapped(family)
    seen: dict[str, Tensor] = {}
    with model.trace() as tracer:
        with tracer.invoke(PROMPT):
            seen["long"] = model.read("pattern.1").clone()
        with tracer.invoke(OTHER):
            seen["q"] = model.read("q.1").clone()
            model.write("pattern.2.h1", torch.zeros_like(model.read("pattern.2.h1")))
            seen["z"] = model.read("z.2").clone()
        with tracer.invoke():
            seen["both"] = model.read("pattern.1").clone()
            seen["z of both"] = model.read("z.2").clone()
    batch = positioned(family, encoded(PROMPT, OTHER))
    expected = patterns(family, **batch)[1]
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(seen["long"], expected[:1])
    torch.testing.assert_close(seen["both"][1][:, real[1]], expected[1][:, real[1]])
    assert seen["q"].shape == (1, 4, real.shape[1], 8)
    assert not seen["z"][:, :, 1].any() and seen["z"][:, :, 0].any()
    assert not seen["z of both"][1, :, 1].any() and seen["z of both"][0, :, 1].any(), "the other prompt keeps its head"


@families
@torch.no_grad()
def test_a_pattern_from_another_prompt(family: str) -> None:
    model = wrapped(family)
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(IDS[:1]):
            source = model.read("pattern.2").clone().save()
            barrier()
        with tracer.invoke(IDS[1:]):
            barrier()
            model.write("pattern.2", source)
            patched = model.logits.save()
    with model.session():
        with model.trace(IDS[:1]):
            again = model.read("pattern.2").clone()
        with model.trace(IDS[1:]):
            model.attention_probabilities[2] = again
            v = model.read("z.2").clone().save()
            by_session = model.logits.save()
    torch.testing.assert_close(source, patterns(family, input_ids=IDS[:1])[2])
    torch.testing.assert_close(patched, by_session)
    assert not torch.allclose(patched, residuals(family, input_ids=IDS)[1][1:], atol=1e-3)
    with model.trace(IDS[1:]):
        values = model.read("v.2").clone().save()
    values = values.repeat_interleave(4 // values.shape[1], dim=1)
    torch.testing.assert_close(v, (patterns(family, input_ids=IDS[:1])[2] @ values).transpose(1, 2))


@families
@torch.no_grad()
def test_at_every_step_of_a_generation(family: str) -> None:
    model = wrapped(family)
    seen: list[Tensor] = []
    with model.generate(IDS, **GREEDY) as tracer:
        for _ in tracer.iter[:3]:
            seen.append(model.read("pattern.1").clone())
        ids = tracer.result.save()
    expected = eager(family).generate(
        IDS, attention_mask=torch.ones_like(IDS), **GREEDY, output_attentions=True, return_dict_in_generate=True
    )
    assert torch.equal(ids, expected.sequences)
    assert [value.shape[-2:] for value in seen] == [(6, 6), (1, 7), (1, 8)]
    for value, step in zip(seen, expected.attentions, strict=True):
        torch.testing.assert_close(value, step[1], atol=1e-5, rtol=1e-5)


@families
@torch.no_grad()
def test_at_a_later_step(family: str) -> None:
    """Steps are counted alike at attention's points and at modules."""
    model = wrapped(family)
    with model.generate(IDS, **GREEDY) as tracer:
        for _ in tracer.iter[1]:
            hidden = model.read("resid_pre.2").clone().save()
            pattern = model.read("pattern.2").clone().save()
            after = model.read("resid_post.2").clone().save()
            model.write("pattern.3", torch.zeros_like(model.read("pattern.3")))
            z = model.read("z.3").clone().save()
        ids = tracer.result.save()
    sequence = ids[:, :7]
    expected, _ = residuals(family, input_ids=sequence)
    torch.testing.assert_close(hidden, expected[1][:, -1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after, expected[2][:, -1:], atol=1e-5, rtol=1e-5)
    expected_pattern = patterns(family, input_ids=sequence)[2][:, :, -1:]
    in_cache = pattern.shape[-1]  # where a sliding window is shorter than the text, its keys alone are
    assert in_cache == (4 if family == "gemma2" else 7)
    torch.testing.assert_close(pattern, expected_pattern[..., -in_cache:], atol=1e-5, rtol=1e-5)
    assert not z.any()


@families
@torch.no_grad()
def test_in_an_edit(family: str) -> None:
    model = wrapped(family)
    with model.edit() as (_, edited):
        edited.write("z.1.h2", torch.zeros_like(edited.read("z.1.h2")))
        edited.write("pattern.2", torch.zeros_like(edited.read("pattern.2")))
    with edited.trace(IDS):
        first = edited.read("z.1").clone().save()
        second = edited.read("z.2").clone().save()
        changed = edited.logits.save()
    with model.trace(IDS):
        clean = model.logits.save()
    assert not first[:, :, 2].any() and first[:, :, 1].any() and not second.any()
    assert torch.equal(clean, residuals(family, input_ids=IDS)[1])
    with model.trace(IDS):
        model.write("head_out.1.h2", torch.zeros_like(model.read("head_out.1.h2")))
        model.write("z.2", torch.zeros_like(model.read("z.2")))
        by_hand = model.logits.save()
    if family != "gemma2":  # there a norm comes between the heads and the stream, which makes of 0 another 0
        torch.testing.assert_close(changed, by_hand, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(changed, clean, atol=1e-3)


@pytest.mark.parametrize("site", ["q.1", "k.1", "v.1", "scores.1", "pattern.1", "pattern.1.h2"])
@families
def test_the_gradient_predicts_a_small_change(family: str, site: str) -> None:
    model = wrapped(family)
    with model.trace(IDS):
        value = model.read(site).clone()
        model.write(site, value)
        loss = model.logits[:, -1, :50].sum()
        with loss.backward():
            gradient = value.grad.save()
    model._module.zero_grad(set_to_none=True)
    assert gradient.any()
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
    direction = direction / direction.norm()
    if site == "scores.1":  # what the mask hides stays hidden
        direction = direction * torch.ones(6, 6).tril()
    step = 1e-2
    losses = []
    for sign in (1, -1):
        with torch.no_grad(), model.trace(IDS):
            model.write(site, model.read(site) + sign * step * direction)
            changed = model.logits[:, -1, :50].double().sum().save()
        losses.append(changed)
    slope = (losses[0] - losses[1]) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum().double(), slope, rtol=2e-2, atol=2e-2)


@families
def test_scanning(family: str) -> None:
    model = wrapped(family)
    with model.scan(IDS):
        shapes = nnsight.save({})
        shapes["q"] = tuple(model.read("q.1").shape)
        shapes["pattern"] = tuple(model.read("pattern.1").shape)
        shapes["z"] = tuple(model.read("z.1").shape)
    assert shapes == {"q": (2, 4, 6, 8), "pattern": (2, 4, 6, 6), "z": (2, 6, 4, 8)}
    assert AttentionInterface.get_interface is GET_INTERFACE


@torch.no_grad()
def test_what_is_switched_on_is_off_after_an_error_and_a_stop() -> None:
    model = wrapped("llama")
    with pytest.raises(ZeroDivisionError), model.trace(IDS):
        _ = model.read("pattern.1") * (1 / 0)
    assert AttentionInterface.get_interface is GET_INTERFACE
    with model.trace(IDS) as tracer:
        pattern = model.read("pattern.1").clone().save()
        tracer.stop()
    assert AttentionInterface.get_interface is GET_INTERFACE
    torch.testing.assert_close(pattern, patterns("llama", input_ids=IDS)[1])
    assert torch.equal(model.trace(IDS, trace=False).logits, residuals("llama", input_ids=IDS)[1])


@torch.no_grad()
def test_remote() -> None:
    model = wrapped("gpt2")
    with model.trace(IDS, remote="local"):
        pattern = model.read("pattern.1").clone().save()
    torch.testing.assert_close(pattern, patterns("gpt2", input_ids=IDS)[1])

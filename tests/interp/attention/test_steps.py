"""Points in everything that nnsight runs: generation, invokes, sessions, edits, barriers, gradients, scans."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import build
from tests.interp.attention.models import IDS, Traced, attention_paths, feed, switched, traced

STEPS = 4
# Through the interface, under either implementation; and through operations, with a cache in each way that there is.
MODELS = [
    ("llama", "sdpa"), ("llama", "eager"), ("gemma3_text", "sdpa"), ("gpt_oss", "eager"), ("gpt2", "sdpa"),
    ("bloom", "eager"), ("falcon", "eager"), ("gptj", "eager"), ("gpt_neo", "eager"), ("mpt", "eager"),
    ("xglm", "eager"),
]  # fmt: skip
PROMPT = IDS[1:]


def made(name: str, implementation: str) -> Traced:
    return Traced(switched(build(name), implementation), attention_paths(name))


@torch.no_grad()
def steps_by_hand(name: str) -> list[tuple[Tensor, ...]]:
    """The attentions of every step of a plain model's greedy generation, in eager."""
    plain = switched(build(name), "eager")
    return list(plain.generate(**generation(), return_dict_in_generate=True, output_attentions=True).attentions)


def generation() -> dict[str, Any]:
    """Greedy, with a cache, and not cut short."""
    return dict(
        input_ids=PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=STEPS, do_sample=False,
        eos_token_id=None, use_cache=True,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "implementation"), MODELS)
def test_each_step_of_a_generation(name: str, implementation: str) -> None:
    expected = steps_by_hand(name)
    model = made(name, implementation)
    got: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad(), model.generate(**generation()) as tracer:
        for _ in tracer.iter[:STEPS]:
            k = model.access.read("k", 1).clone()
            pattern = model.access.read("pattern", 1).clone()
            got.append((k, pattern, model.access.read("pattern", 3).clone()))
    assert len(got) == STEPS
    for (k, first, last), attentions in zip(got, expected, strict=True):
        torch.testing.assert_close(first, attentions[1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(last, attentions[3], atol=1e-5, rtol=1e-4)
        assert k.shape[2] == attentions[1].shape[3]
    assert [pattern.shape[2] for _, pattern, _ in got] == [PROMPT.shape[1]] + [1] * (STEPS - 1)


@pytest.mark.parametrize(("name", "implementation"), MODELS)
def test_steps_are_counted_as_the_modules_are(name: str, implementation: str) -> None:
    """Asked for late, after the first step has passed the layer, step 2 is still step 2."""
    expected = steps_by_hand(name)
    model = made(name, implementation)
    got: list[Tensor] = []
    with torch.no_grad(), model.generate(**generation()) as tracer:
        _ = model.attention(3).output  # layer 1 is behind
        for _ in tracer.iter[2:4]:
            got.append(model.access.read("pattern", 1).clone())
    for pattern, attentions in zip(got, expected[2:4], strict=True):
        torch.testing.assert_close(pattern, attentions[1], atol=1e-5, rtol=1e-4)
    got.clear()
    with torch.no_grad(), model.generate(**generation()) as tracer:
        for _ in tracer.iter[[1, 3]]:
            model.access.read("q", 1)
            got.append(model.access.read("pattern", 1).clone())
    for pattern, attentions in zip(got, expected[1::2], strict=True):
        torch.testing.assert_close(pattern, attentions[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "implementation"), MODELS)
@torch.no_grad()
def test_each_invoke_has_its_rows(name: str, implementation: str) -> None:
    """Two prompts in one forward pass, of which one is edited, against each alone."""
    model = made(name, implementation)
    short, long = IDS[:1, 3:], IDS[1:]
    kinds = [kind for kind in ("q", "k", "v", "scores", "pattern") if model.access.available(kind, 1) is None]
    alone: dict[str, Tensor] = {}
    with model.trace(input_ids=short, use_cache=False):
        for kind in kinds:
            alone[kind] = model.access.read(kind, 1).clone()
        alone["short"] = model.output.logits[:, -1].clone()
    with model.trace(input_ids=long, use_cache=False):
        for kind in kinds:
            value = model.access.read(kind, 1).clone()
            value[:, 0] = value[:, 0] * 0.5
            model.access.write(kind, 1, value)
        alone["long"] = model.output.logits[:, -1].clone()
    got: dict[str, Tensor] = {}
    with model.trace(use_cache=False) as tracer:
        with tracer.invoke(input_ids=short):
            for kind in kinds:
                got[kind] = model.access.read(kind, 1).clone()
            got["short"] = model.output.logits[:, -1].clone()
        with tracer.invoke(input_ids=long):
            for kind in kinds:
                value = model.access.read(kind, 1).clone()
                value[:, 0] = value[:, 0] * 0.5
                model.access.write(kind, 1, value)
            got["long"] = model.output.logits[:, -1].clone()
    width = short.shape[1]
    for kind in kinds:
        value = got[kind][:, :, -width:]
        if kind in ("scores", "pattern"):
            value = value[..., -width:]
        seen = alone["pattern"] > 0
        if kind == "scores":  # where it is masked the two masks need not be the same large number
            value, expected = value.where(seen, 0.0), alone[kind].where(seen, 0.0)
            if name == "bloom":  # its bias counts keys from the left; a row's constant means nothing
                value, expected = value.softmax(-1), expected.softmax(-1)
        else:
            expected = alone[kind]
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got["short"], alone["short"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got["long"], alone["long"], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_one_invoke_takes_from_another() -> None:
    """The pattern of one prompt put in another's forward pass, past a barrier."""
    model = traced("llama")
    got: dict[str, Tensor] = {}
    other = IDS[1:].flip(1)
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(input_ids=IDS[1:]):
            pattern = model.access.read("pattern", 2)
            barrier()
        with tracer.invoke(input_ids=other):
            barrier()
            model.access.write("pattern", 2, pattern)
            got["patched"] = model.output.logits.clone()
    kept: dict[str, Tensor] = {}
    with model.trace(input_ids=IDS[1:]):
        kept["pattern"] = model.access.read("pattern", 2).clone()
    with model.trace(input_ids=other):
        model.access.write("pattern", 2, kept["pattern"])
        kept["logits"] = model.output.logits.clone()
    torch.testing.assert_close(got["patched"], kept["logits"], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_sessions_and_stored_edits() -> None:
    for name in ("llama", "gpt_neo"):
        model = traced(name)
        expected: list[Tensor] = []
        with model.trace(input_ids=PROMPT):
            value = model.access.read("pattern", 1).clone()
            value[:, 2] = 0
            model.access.write("pattern", 1, value)
            expected.append(model.output.logits.clone())
        with model.edit() as (_, edited):
            edited.access.read("pattern", 1)[:, 2] = 0
        got: list[Tensor] = []
        with model.session():
            with edited.trace(input_ids=PROMPT):
                got.append(edited.output.logits.clone())
            with model.trace(input_ids=PROMPT):
                got.append(model.output.logits.clone())
            with edited.trace(input_ids=PROMPT):
                assert not edited.access.read("pattern", 1)[:, 2].any()
                got.append(edited.output.logits.clone())
        plain = build(name)(input_ids=PROMPT).logits
        torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(got[0], got[2])
        torch.testing.assert_close(got[1], plain, atol=1e-5, rtol=1e-5)
        assert (got[0] - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_gradients_reach_the_points(name: str) -> None:
    """The gradient at the pattern against the change that a small step makes."""
    model = traced(name)
    got: dict[str, Tensor] = {}
    with model.trace(input_ids=PROMPT, use_cache=False):
        pattern = model.access.read("pattern", 1)
        loss = model.output.logits.double().square().sum()
        got["loss"] = loss.detach().clone()
        with loss.backward():
            got["gradient"] = pattern.grad.clone()
    step = torch.randn(got["gradient"].shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    moved = []
    for sign in (1, -1):
        with torch.no_grad(), model.trace(input_ids=PROMPT, use_cache=False):
            model.access.write("pattern", 1, model.access.read("pattern", 1) + sign * step)
            moved.append(model.output.logits.double().square().sum())
    slope = (moved[0] - moved[1]) / 2
    torch.testing.assert_close(slope, (got["gradient"] * step).sum().double(), atol=0, rtol=1e-2)


def test_a_scan_gives_shapes_without_computing() -> None:
    model = traced("llama")
    shapes = []
    with model.scan(input_ids=PROMPT):
        shapes.append(tuple(model.access.read("k", 1).shape))
        shapes.append(tuple(model.access.read("pattern", 1).shape))
    length = PROMPT.shape[1]
    assert shapes == [(1, 2, length, 8), (1, 4, length, length)]


@torch.no_grad()
def test_a_prefix_in_the_cache() -> None:
    """Queries of the rest alone, keys of the whole."""
    whole = switched(build("llama"), "eager")(PROMPT, output_attentions=True).attentions[2]
    for name in ("sdpa", "eager"):
        model = made("llama", name)
        cache = model._module(PROMPT[:, :5]).past_key_values
        got: dict[str, Tensor] = {}
        with model.trace(input_ids=PROMPT[:, 5:], past_key_values=cache, use_cache=True):
            got["q"] = model.access.read("q", 2).clone()
            got["k"] = model.access.read("k", 2).clone()
            got["pattern"] = model.access.read("pattern", 2).clone()
        assert got["q"].shape[2] == 4 and got["k"].shape[2] == 9
        torch.testing.assert_close(got["pattern"], whole[:, :, 5:], atol=1e-6, rtol=1e-5)


def test_a_repeated_read_follows_the_models_rows() -> None:
    """Read twice, written, read by an edit first: always the value as it stands."""
    model = traced("llama")
    got: list[Tensor] = []
    with torch.no_grad(), model.edit() as (_, edited):
        edited.access.write("scores", 1, edited.access.read("scores", 1) * 0.5)
    with torch.no_grad(), edited.trace(**feed(model._module)):
        got.append(edited.access.read("scores", 1).clone())
        edited.access.write("scores", 1, edited.access.read("scores", 1) * 2)
        got.append(edited.access.read("scores", 1).clone())
        got.append(edited.output.logits.clone())
    with torch.no_grad(), model.trace(**feed(model._module)):
        got.append(model.access.read("scores", 1).clone())
        got.append(model.output.logits.clone())
    assert torch.equal(got[0], got[3] * 0.5) and torch.equal(got[1], got[3])
    torch.testing.assert_close(got[2], got[4])


@pytest.mark.parametrize(("name", "implementation"), MODELS)
@torch.no_grad()
def test_a_trace_after_one_that_was_broken_off_inside_attention(name: str, implementation: str) -> None:
    """What nnsight has counted in a pass that never ended does not put the next one out of step."""
    model = made(name, implementation)
    expected = steps_by_hand(name)
    for _ in range(2):
        with model.trace(input_ids=PROMPT, use_cache=True) as tracer:
            model.access.read("k", 1)
            model.access.read("pattern", 1)
            tracer.stop()
        with pytest.raises(ZeroDivisionError), model.trace(input_ids=PROMPT, use_cache=True):
            model.access.read("scores", 1)
            1 / 0  # noqa: B018
        got: list[Tensor] = []
        with model.trace(input_ids=PROMPT, use_cache=True):
            model.access.read("k", 1)
            got.append(model.access.read("pattern", 1).clone())
        with model.generate(**generation()) as tracer:
            _ = model.attention(3).output
            for _ in tracer.iter[1:3]:
                model.access.read("q", 1)
                got.append(model.access.read("pattern", 1).clone())
        for pattern, attentions in zip(got, expected[:3], strict=True):
            torch.testing.assert_close(pattern, attentions[1], atol=1e-5, rtol=1e-4)

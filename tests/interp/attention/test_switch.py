"""What is asked for is switched on, and nothing else; when the trace is over, all is as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.models.llama import modeling_llama

from interp.attention import AttentionAccess
from interp.attention.interface import SoftmaxPoints, routing_module
from interp.attention.points import Points
from interp.attention.switch import switch_off, switch_on
from interp.errors import InterpError
from tests.families import build
from tests.interp.attention.models import IDS, MASK, Traced, attention_paths, feed, plain_patterns, switched, traced
from tests.interp.attention.twins import eager_replaced

PLAIN_GET_INTERFACE = AttentionInterface.get_interface
EAGER = modeling_llama.eager_attention_forward


@pytest.fixture
def model() -> Traced:
    return traced("llama")


@pytest.fixture(autouse=True)
def nothing_stays_on() -> Any:
    yield
    assert AttentionInterface.get_interface is PLAIN_GET_INTERFACE


@torch.no_grad()
def logits_of(model: Traced) -> Tensor:
    got = []
    with model.trace(**feed(model._module)):
        got.append(model.output.logits.clone())
    return got[0]


@torch.no_grad()
def test_a_forward_pass_that_asks_for_nothing_is_the_plain_one(model: Traced) -> None:
    plain = build("llama")
    expected = plain(**feed(plain)).logits
    names = list(plain.state_dict())
    for _ in range(2):
        assert torch.equal(logits_of(model), expected)
        with model.trace(**feed(model._module)):
            model.access.read("pattern", 1)
        assert model._module.config._attn_implementation == "sdpa"
        assert list(model._module.state_dict()) == names
        assert [name for name, _ in model._module.named_modules()] == [name for name, _ in plain.named_modules()]
    assert torch.equal(copy.deepcopy(model._module)(**feed(plain)).logits, expected)


def counting(calls: list[int]) -> Callable[..., Any]:
    """Llama's eager attention, which notes the layer of each call."""

    def attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(module.layer_idx)
        return EAGER(module, *args, **kwargs)

    return attention


@torch.no_grad()
def test_the_other_layers_go_on_as_they_were(model: Traced) -> None:
    """Only the pattern needs eager; q, k and v are read on the way to the function that the model has."""
    plain = logits_of(model)
    calls: list[int] = []
    got: list[Tensor] = []
    with eager_replaced(model.attention(0)._module, counting(calls)):
        with model.trace(**feed(model._module)):
            for kind in ("q", "k", "v"):
                model.access.read(kind, 0)
            model.access.read("scores", 2)
            model.access.read("v", 3)
            got.append(model.output.logits.clone())
        assert calls == [2]
        with model.trace(**feed(model._module)):
            model.access.read("k", 1)
            got.append(model.output.logits.clone())
        assert calls == [2]
    torch.testing.assert_close(got[0][MASK.bool()], plain[MASK.bool()], atol=1e-5, rtol=1e-5)
    assert torch.equal(got[1], plain)


@torch.no_grad()
def test_the_other_steps_go_on_as_they_were(model: Traced) -> None:
    """Of four steps only the third is asked for."""
    calls: list[int] = []
    with eager_replaced(model.attention(0)._module, counting(calls)):
        with model.generate(IDS[1:], max_new_tokens=4, do_sample=False, eos_token_id=None) as tracer:
            for _ in tracer.iter[2:3]:
                model.access.read("pattern", 1)
        assert calls == [1]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_asking_in_the_middle_of_a_forward_pass(implementation: str) -> None:
    model = traced("gemma3_text", implementation)
    eager = switched(build("gemma3_text"), "eager")
    patterns, _ = plain_patterns(eager, **feed(eager))
    got: dict[int, Tensor] = {}
    for layer in range(1, 4):
        with model.trace(**feed(model._module)):
            model.model.layers[layer - 1].output.mean()
            _ = model.attention(layer).inputs  # the module has been entered
            got[layer] = model.access.read("pattern", layer).clone()
    for layer, pattern in got.items():
        expected = patterns[model.paths[layer]]
        real = MASK[:, None, :, None].bool()
        torch.testing.assert_close(pattern.where(real, 0.0), expected.where(real, 0.0), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_all_is_switched_off_after_an_exception_and_after_stop(model: Traced) -> None:
    plain = logits_of(model)
    with pytest.raises(ZeroDivisionError), model.trace(**feed(model._module)):
        model.access.read("scores", 1)
        1 / 0  # noqa: B018
    assert AttentionInterface.get_interface is PLAIN_GET_INTERFACE
    assert torch.equal(logits_of(model), plain)
    with model.trace(**feed(model._module)) as tracer:
        model.access.read("pattern", 1)
        tracer.stop()
    assert AttentionInterface.get_interface is PLAIN_GET_INTERFACE
    with pytest.raises(Exception, match="the forward pass is past it"), model.trace(**feed(model._module)):
        model.access.read("q", 2)
        model.access.read("pattern", 1)
    assert AttentionInterface.get_interface is PLAIN_GET_INTERFACE
    assert torch.equal(logits_of(model), plain)


@torch.no_grad()
def test_the_bodys_own_softmax_is_its_own(model: Traced) -> None:
    """The body runs while the model is inside attention, and computes with functions that are watched there."""
    got: dict[str, Tensor] = {}
    with model.trace(**feed(model._module)):
        scores = model.access.read("scores", 1)
        got["scores"] = scores.clone()
        ones = torch.ones_like(scores)
        got["softmax"] = functional.softmax(ones, dim=-1)
        got["dropout"] = functional.dropout(ones, p=0.0)
        got["product"] = ones @ ones
        pattern = model.access.read("pattern", 1)
        got["again"] = functional.dropout(functional.softmax(scores, dim=-1), p=0.0) @ ones
        got["pattern"] = pattern.clone()
        got["z"] = model.attention(1).get("o_proj").input.clone()
    assert torch.equal(got["softmax"], torch.full_like(got["softmax"], 1 / IDS.shape[1]))
    assert torch.equal(got["dropout"], torch.ones_like(got["dropout"]))
    assert torch.equal(got["product"], torch.full_like(got["product"], IDS.shape[1]))
    torch.testing.assert_close(got["pattern"], got["scores"].softmax(-1))
    torch.testing.assert_close(got["again"], torch.ones_like(got["again"]))


def test_a_body_that_runs_while_the_mode_stands_is_let_through() -> None:
    """Also where it runs outside a call that the mode handles: in a submodule that an eager attention calls."""
    from greenlet import greenlet

    served: list[str] = []
    interleaver = SimpleNamespace(handle=lambda location, value: served.append(location) or value)
    scores = torch.randn(1, 1, 3, 3)
    with SoftmaxPoints(Points(interleaver, "attn"), 3, {}) as mode:
        greenlet(lambda: functional.dropout(functional.softmax(scores, dim=-1), p=0.0)).switch()
        assert served == [] and not mode.values
        functional.softmax(scores, dim=-1) @ torch.eye(3)
    assert served == ["attn.scores", "attn.pattern"]  # without dropout, the product with the values takes the pattern
    assert torch.equal(mode.values["pattern"], scores.softmax(-1))


@torch.no_grad()
def test_another_model_in_the_body_is_left_alone(model: Traced) -> None:
    """While one model is watched, others attend as ever, whatever function they have."""
    other, sinks = build("mistral"), build("gpt_oss")
    expected = other(**feed(other)).logits, sinks(**feed(sinks)).logits
    got = []
    with model.trace(**feed(model._module)):
        model.access.read("scores", 1)
        got.append((other(**feed(other)).logits, sinks(**feed(sinks)).logits))
        model.access.read("pattern", 1)
    assert torch.equal(got[0][0], expected[0]) and torch.equal(got[0][1], expected[1])


def test_outside_a_trace_nothing_is_switched_on(model: Traced) -> None:
    with pytest.raises(ValueError, match="outside of interleaving"):
        model.access.read("pattern", 1)
    with pytest.raises(ValueError, match="outside of interleaving"):
        traced("bloom").access.read("pattern", 1)


def test_what_cannot_be_had_says_why(model: Traced) -> None:
    with pytest.raises(InterpError, match="Did you mean 'pattern'"):
        model.access.available("patern", 0)
    assert model.access.available("pattern", 9) == "layer 9 has no attention."
    model._module.config._attn_implementation = "flash_attention_2"
    reason = "attn_implementation='flash_attention_2'.*Load it with 'sdpa' or 'eager'"
    with pytest.raises(InterpError, match=f"pattern of layer 1 is not available.*{reason}"):
        model.access.read("pattern", 1)
    model._module.config._attn_implementation = "sdpa"
    mamba = AttentionAccess(lambda layer: SimpleNamespace(_module=build("mamba").backbone.layers[layer].mixer), "mamba")
    assert "does not ask transformers' AttentionInterface" in str(mamba.available("pattern", 0))


@torch.no_grad()
def test_gpt2_with_an_eager_attention_of_its_own() -> None:
    """`reorder_and_upcast_attn` goes round the interface in eager, not under sdpa."""
    module = build("gpt2")
    for block in module.transformer.h:
        block.attn.reorder_and_upcast_attn = True
    model = Traced(switched(module, "eager"), [f"transformer.h.{i}.attn" for i in range(4)])
    assert "attn_implementation='sdpa'" in str(model.access.available("pattern", 0))
    switched(module, "sdpa")
    patterns, _ = plain_patterns(eager := switched(build("gpt2"), "eager"), **feed(eager))
    got = []
    with model.trace(**feed(module)):
        got.append(model.access.read("pattern", 0).clone())
    torch.testing.assert_close(got[0], patterns["transformer.h.0.attn"])


@torch.no_grad()
def test_attention_inside_what_a_layer_calls_attention() -> None:
    """DBRX's sits behind a norm, GPT-Neo's in a module that chooses it."""
    for name, outer, inner in (("dbrx", "norm_attn_norm", "attn"), ("gpt_neo", "attn", "attention")):
        paths = attention_paths(name)
        assert all(path.endswith(f"{outer}.{inner}") for path in paths)
        patterns, _ = plain_patterns(eager := switched(build(name), "eager"), **feed(eager))
        model = Traced(build(name), [path.removesuffix(f".{inner}") for path in paths])
        got = []
        with model.trace(**feed(model._module)):
            got.append(model.access.read("pattern", 3).clone())
        torch.testing.assert_close(got[0], patterns[paths[3]], atol=1e-6, rtol=1e-5)
    assert routing_module(build("dbrx").transformer.blocks[0].norm_attn_norm) == "attn"


@torch.no_grad()
def test_a_pattern_that_the_user_points_to() -> None:
    """An operation given by the user counts before everything else, also beside points of our own."""
    sources = {
        "falcon_alibi": lambda attention: attention.source.F_softmax_1,
        "llama": lambda attention: attention.source.attention_interface_1.source.nn_functional_dropout_0,
    }
    for name, source in sources.items():
        model = Traced(switched(build(name), "eager"), attention_paths(name), source)
        patterns, _ = plain_patterns(eager := switched(build(name), "eager"), **feed(eager))
        got: dict[str, Tensor] = {}
        with model.trace(**feed(model._module)):
            model.access.read("q", 0)
            got["pattern"] = model.access.read("pattern", 1).clone()
            model.access.write("pattern", 1, torch.zeros_like(got["pattern"]))
            got["z"] = model.attention(1).get("dense" if name == "falcon_alibi" else "o_proj").input.clone()
        assert torch.equal(got["pattern"], patterns[model.paths[1]])
        assert not got["z"].any()


@torch.no_grad()
def test_another_library_that_patches_the_interface_too(model: Traced) -> None:
    """It puts a function over ours while ours is there, and takes both away: ours is found gone, and put back."""
    patterns, _ = plain_patterns(eager := switched(build("llama"), "eager"), **feed(eager))

    def read() -> Tensor:
        got = []
        with model.trace(**feed(model._module)):
            got.append(model.access.read("pattern", 1).clone())
        return got[0]

    outer = switch_on((), lambda base, _, *args, **kwargs: base(*args, **kwargs))
    ours = AttentionInterface.get_interface
    AttentionInterface.get_interface = lambda self, *args: ours(self, *args)
    try:
        found = [read()]
        AttentionInterface.get_interface = PLAIN_GET_INTERFACE
        found.append(read())
    finally:
        switch_off(outer)
    for pattern in found:
        real = MASK[:, None, :, None].bool()
        expected = patterns[model.paths[1]]
        torch.testing.assert_close(pattern.where(real, 0.0), expected.where(real, 0.0), atol=1e-6, rtol=1e-5)


class CallsTwice(modeling_llama.LlamaAttention):
    """Attention that a user has built on another: it calls the function twice, with other queries."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        super().forward(hidden_states.flip(1), **kwargs)
        return super().forward(hidden_states, **kwargs)


@torch.no_grad()
def test_attention_that_cannot_be_followed_says_so(model: Traced) -> None:
    def sigmoid(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **_: Any) -> Any:
        k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
        return ((q @ k.transpose(2, 3)).sigmoid() @ v).transpose(1, 2), None

    with (
        eager_replaced(model.attention(0)._module, sigmoid),
        pytest.raises(InterpError, match=r"pattern and scores not available: .*sigmoid does not take a softmax"),
        model.trace(**feed(model._module)),
    ):
        model.access.read("pattern", 1)
    module = build("llama")
    module.model.layers[1].self_attn.__class__ = CallsTwice
    twice = Traced(module, model.paths)
    with (
        pytest.raises(InterpError, match="CallsTwice calls its attention function twice"),
        twice.trace(**feed(module)),
    ):
        twice.access.read("pattern", 1)

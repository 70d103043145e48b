"""Steering and skipped layers, against plain transformers with hooks, or with layers taken out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.errors import InterpError
from tests.interp.reference import IDS, place, plain, reading, wrapped

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))


def hooked(case: str, layers: Sequence[int], change: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits of the plain model with each layer's output changed."""
    handles = [
        place(case, f"resid_post.{layer}")[0].register_forward_hook(lambda _, args, output: change(output.clone()))
        for layer in layers
    ]
    logits = plain(case)(input_ids=IDS).logits
    for handle in handles:
        handle.remove()
    return logits


def added(rows: Any, columns: Any, factor: float = 1.0) -> Callable[[Tensor], Tensor]:
    def change(hidden: Tensor) -> Tensor:
        hidden[rows, columns] = hidden[rows, columns] + factor * VECTOR
        return hidden

    return change


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize(
    ("layers", "given", "change"),
    [
        (1, {}, added(slice(None), slice(None))),
        ([-1, 0], {"factor": -2.5}, added(slice(None), slice(None), -2.5)),
        ([1, 2], {"token_positions": -1}, added(slice(None), -1)),
        (1, {"token_positions": [0, 3]}, added(slice(None), [0, 3])),
        (1, {"batch_index": 1}, added(1, slice(None))),
        (1, {"batch_index": [0, 1], "token_positions": [2, 5]}, added([0, 1], [2, 5])),
        (1, {"batch_index": 0, "token_positions": torch.tensor([1, 2])}, added(0, [1, 2])),
    ],
)
@torch.no_grad()
def test_steering(case: str, layers: Any, given: dict[str, Any], change: Callable[[Tensor], Tensor]) -> None:
    model = wrapped(case)
    with model.trace(input_ids=IDS):
        model.steer(layers, VECTOR, **given)
        logits = model.logits.clone().save()
    numbers = [layer % 4 for layer in ([layers] if isinstance(layers, int) else layers)]
    assert torch.equal(logits, hooked(case, numbers, change))
    assert (logits - plain(case)(input_ids=IDS).logits).abs().max() > 1e-2


@torch.no_grad()
def test_what_was_read_before_stays_as_it_was() -> None:
    model = wrapped("llama")
    with model.trace(input_ids=IDS):
        before = model.layers_output[1].save()
        model.steer(1, VECTOR)
        after = model.layers_output[1].save()
    torch.testing.assert_close(after - before, VECTOR.expand_as(after), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_vector_for_each_row_in_another_dtype() -> None:
    model = wrapped("llama")
    vectors = torch.stack([VECTOR, -VECTOR])[:, None].double()
    with model.trace(input_ids=IDS):
        model.steer(2, vectors, 0.5)
        logits = model.logits.clone().save()
    expected = hooked("llama", [2], lambda hidden: hidden + 0.5 * vectors.float())
    assert torch.equal(logits, expected)


def test_gradients_reach_the_vector() -> None:
    model = wrapped("llama")
    vector = VECTOR.clone().requires_grad_()
    with model.trace(input_ids=IDS):
        model.steer(1, vector)
        loss = model.logits.square().mean().save()
    (gradient,) = torch.autograd.grad(loss, vector)
    step = 1e-3 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ends = [
            hooked("llama", [1], lambda hidden, sign=sign: hidden + VECTOR + sign * step).double().square().mean()  # type: ignore[misc]
            for sign in (1, -1)
        ]
    torch.testing.assert_close((gradient * step).sum().double(), (ends[0] - ends[1]) / 2, rtol=1e-2, atol=1e-7)


def test_what_cannot_be_steered() -> None:
    model = wrapped("llama")
    with pytest.raises(InterpError, match=r"steering_vector: expected \(\.\.\., 32\), got shape \(31,\)"):  # noqa: SIM117
        with model.trace(input_ids=IDS):
            model.steer(1, VECTOR[:31])
    with pytest.raises(InterpError, match="layer 7 is out of range"):  # noqa: SIM117
        with model.trace(input_ids=IDS):
            model.steer([0, 7], VECTOR)


LAYERS = {"llama": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "gemma2": "model.layers"}


def without(case: str, first: int, last: int) -> nn.Module:
    """A copy of the plain model whose layers `first` to `last` give back what they are given."""

    class Identity(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.attention_type = getattr(layer, "attention_type", None)  # which mask the model hands to the layer

        def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
            return hidden_states

    model = copy.deepcopy(plain(case))
    layers = model.get_submodule(LAYERS[case])
    assert isinstance(layers, nn.ModuleList)
    for layer in range(first, last + 1):
        layers[layer] = Identity(layers[layer])
    return model


@pytest.mark.parametrize("case", LAYERS)
@torch.no_grad()
def test_skipped_layers_are_not_computed(case: str) -> None:
    model = wrapped(case)
    with model.trace(input_ids=IDS, use_cache=False):
        model.skip_layers(1, 2)
        hidden = model.layers_output[2].clone().save()
        logits = model.logits.clone().save()
    with reading(case, ["resid_post.0"]) as values:
        plain(case)(input_ids=IDS)
    assert torch.equal(hidden, values["resid_post.0"])
    torch.testing.assert_close(logits, without(case, 1, 2)(input_ids=IDS, use_cache=False).logits, atol=0, rtol=0)


@torch.no_grad()
def test_one_layer_from_the_end() -> None:
    model = wrapped("gpt2")
    with model.trace(input_ids=IDS, use_cache=False):
        model.skip_layer(-1)
        logits = model.logits.clone().save()
    torch.testing.assert_close(logits, without("gpt2", 3, 3)(input_ids=IDS, use_cache=False).logits, atol=0, rtol=0)


@pytest.mark.parametrize("case", LAYERS)
@torch.no_grad()
def test_a_pass_that_starts_later_with_a_saved_residual_stream(case: str) -> None:
    model = wrapped(case)
    with model.trace(input_ids=IDS, use_cache=False):
        saved = model.layers_output[1].clone().save()
        expected = model.logits.clone().save()
    with model.trace(input_ids=IDS.flip(1), use_cache=False):  # other tokens: what they give is not looked at
        model.skip_layers(0, 1, skip_with=saved)
        logits = model.logits.clone().save()
    assert torch.equal(logits, expected)


@torch.no_grad()
def test_each_invoke_skips_with_its_own_rows() -> None:
    model = wrapped("llama")
    value = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    with model.trace(use_cache=False) as tracer:
        with tracer.invoke(IDS[:1]):
            model.skip_layer(1)
            first = model.logits.clone().save()
        with tracer.invoke(IDS[1:]):
            model.skip_layer(1, value)
            second = model.logits.clone().save()
    expected = without("llama", 1, 1)(input_ids=IDS[:1], use_cache=False).logits
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
    handle = plain("llama").get_submodule("model.layers.1").register_forward_hook(lambda *_: value)
    expected = plain("llama")(input_ids=IDS[1:]).logits
    handle.remove()
    torch.testing.assert_close(second, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("start", "end", "value", "message"),
    [
        (2, 1, None, "expected start_layer <= end_layer, got 2 and 1"),
        (0, 4, None, r"layer 4 is out of range. The model has 4 layers, 0 to 3"),
        (0, 1, torch.zeros(2, 6, 31), r"expected skip_with \(batch, position, 32\), got shape \(2, 6, 31\)"),
        (0, 1, torch.zeros(32), r"got shape \(32,\)"),
    ],
)
def test_what_cannot_be_skipped(start: int, end: int, value: Tensor | None, message: str) -> None:
    model = wrapped("llama")
    with pytest.raises(InterpError, match=message):  # noqa: SIM117
        with model.trace(input_ids=IDS):
            model.skip_layers(start, end, value)

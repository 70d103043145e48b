"""Steering against plain transformers with hooks that add a vector to a layer's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.errors import InterpError
from tests.interp.reference import IDS, place, plain, wrapped

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

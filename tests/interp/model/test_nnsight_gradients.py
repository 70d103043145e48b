"""Gradients of hidden states inside a trace, against autograd on the plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.interp.model.plain import IDS, OTHER, PROMPT, encoded, families, layers, plain, positioned, wrapped


def by_hand(family: str, wanted: list[int], rows: slice = slice(None), **inputs: Any) -> list[Tensor]:
    """Gradients of the sum of some rows' last logits by the outputs of layers of the plain model."""
    outputs: dict[int, Tensor] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _module, _args, output, i=i: outputs.__setitem__(
                i, output[0] if isinstance(output, tuple) else output
            )
        )
        for i, layer in enumerate(layers(family))
    ]
    logits = plain(family)(**inputs).logits
    for hook in hooks:
        hook.remove()
    return list(torch.autograd.grad(logits[rows, -1, :50].sum(), [outputs[i] for i in wanted]))


@families
def test_gradients_of_hidden_states(family: str) -> None:
    model = wrapped(family)
    with model.trace(IDS):
        early = model.layers_output[1]
        late = model.read("resid_post.2")
        loss = model.logits[:, -1, :50].sum()
        with loss.backward():
            late_gradient = late.grad.save()
            early_gradient = early.grad.save()
    expected = by_hand(family, [1, 2], input_ids=IDS)
    torch.testing.assert_close(early_gradient, expected[0])
    torch.testing.assert_close(late_gradient, expected[1])


@families
def test_gradients_after_the_trace(family: str) -> None:
    model = wrapped(family)
    with model.trace(IDS):
        early = model.layers_output[1].save()
        logits = model.logits.save()
    (gradient,) = torch.autograd.grad(logits[:, -1, :50].sum(), early)
    torch.testing.assert_close(gradient, by_hand(family, [1], input_ids=IDS)[0])
    with model.trace(IDS):
        kept = model.read("resid_post.1").save()
        kept.retain_grad()
        model.logits[:, -1, :50].sum().backward()
    try:
        torch.testing.assert_close(kept.grad, by_hand(family, [1], input_ids=IDS)[0])
    finally:
        model._module.zero_grad(set_to_none=True)


@families
def test_gradients_of_each_invoke(family: str) -> None:
    model = wrapped(family)
    gradients: dict[str, Tensor] = {}
    with model.trace() as tracer:
        with tracer.invoke(PROMPT):
            first = model.layers_output[1]
            loss = model.logits[:, -1, :50].sum()
            with loss.backward(retain_graph=True):
                gradients["first"] = first.grad.clone()
        with tracer.invoke(OTHER):
            second = model.read("resid_post.2")
            loss_of_second = model.logits[:, -1, :50].sum()
            with loss_of_second.backward():
                gradients["second"] = second.grad.clone()
    model._module.zero_grad(set_to_none=True)
    batch = positioned(family, encoded(PROMPT, OTHER))
    (expected,) = by_hand(family, [1], slice(0, 1), **batch)
    torch.testing.assert_close(gradients["first"], expected[:1])
    (expected,) = by_hand(family, [2], slice(1, 2), **batch)
    torch.testing.assert_close(gradients["second"], expected[1:])


@families
def test_a_gradient_is_changed_on_its_way_down(family: str) -> None:
    model = wrapped(family)
    with model.trace(IDS):
        early = model.layers_output[0]
        late = model.layers_output[2]
        loss = model.logits[:, -1, :50].sum()
        with loss.backward():
            late.grad = 2 * late.grad
            gradient = early.grad.save()
    model._module.zero_grad(set_to_none=True)
    torch.testing.assert_close(gradient, 2 * by_hand(family, [0], input_ids=IDS)[0])


SITES = ["embed", "attn_in.1", "z.1", "z.1.h2", "head_out.1", "attn_out.1", "resid_mid.1", "mlp_in.1", "mlp_post.1"]
SITES += ["mlp_out.1", "resid_post.1", "final_norm"]


@pytest.mark.parametrize("site", SITES)
@families
def test_the_gradient_at_a_site_predicts_a_small_change(family: str, site: str) -> None:
    """What is computed or reshaped on reading is not in the graph until it is written back."""
    model = wrapped(family)
    with model.trace(IDS):
        value = model.read(site).clone()
        model.write(site, value)
        loss = model.logits[:, -1, :50].sum()
        with loss.backward():
            gradient = value.grad.save()
    model._module.zero_grad(set_to_none=True)
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
    assert gradient.any()
    direction = direction / direction.norm()
    step = 1e-2
    losses = []
    for sign in (1, -1):
        with torch.no_grad(), model.trace(IDS):
            model.write(site, model.read(site) + sign * step * direction)
            changed = model.logits[:, -1, :50].double().sum().save()
        losses.append(changed)
    slope = (losses[0] - losses[1]) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum().double(), slope, rtol=2e-2, atol=2e-2)


@torch.no_grad()
def test_no_graph_is_kept_without_gradients() -> None:
    model = wrapped("llama")
    with model.trace(IDS):
        hidden = model.layers_output[1].save()
    assert hidden.grad_fn is None

"""Gradients of runs with interventions: those of torch, identities, a value that is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.interventions import Intervention
from interp.model import StandardizedTransformer

IDS = [[1, 17, 250, 33, 94, 12], [1, 88, 5, 260], [1, 9, 301, 77, 5, 6]]
Standardized = Callable[[str], StandardizedTransformer]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2"])
def test_gradients_are_those_of_torch(standardized: Standardized, family: str) -> None:
    model = standardized(family)
    answers = [5, 60, 70]

    def metric(logits: Tensor, examples: list[int]) -> Tensor:
        return torch.stack([logits[row, -1].log_softmax(-1)[answers[example]] for row, example in enumerate(examples)])

    zero = Intervention("attn_out.2", "last", "zero")
    given: dict[str, Any] = dict(read="resid_post.1 pattern.2.h1", positions="1 last", gradients_of=metric)
    run = model.run(IDS, zero, batch_size=2, padding_side="right", **given)
    assert run.gradients is not None and run.metric is not None
    for example, ids in enumerate(IDS):
        kept: list[Tensor] = []

        def keep(_: Any, args: Any, output: Any, kept: list[Tensor] = kept) -> Any:
            kept.append((output if isinstance(output, Tensor) else output[0]).clone())
            return kept[0] if isinstance(output, Tensor) else (kept[0], *output[1:])

        hook = model.layer(1)._module.register_forward_hook(keep)
        try:
            with model.trace(input_ids=torch.tensor([ids])):
                changed = model.read("attn_out.2").clone()
                changed[:, -1] = 0
                model.write("attn_out.2", changed)
                logits = model.logits.save()
        finally:
            hook.remove()
        expected = metric(logits, [example])
        (gradient,) = torch.autograd.grad(expected.sum(), kept[0])
        close(run.gradients["resid_post.1"][example], gradient[0, [1, -1]])
        close(run.metric[example], expected[0].detach())
    assert run.gradients["pattern.2.h1"].shape == (3, 2, 6)
    assert not run["resid_post.1"].requires_grad


@pytest.mark.parametrize("family", ["gpt2", "olmo2"])
def test_gradients_keep_the_identities(wrapped: Standardized, family: str) -> None:
    """What is added to the residual stream has the gradient of the sum, also where it is written in place."""
    sites = "embed resid_pre.0 head_out.1 attn_out.1 resid_mid.1 mlp_out.1 resid_post.1 resid_pre.2"
    run = wrapped(family).run(IDS, read=sites, positions="1 last", gradients_of=lambda logits, _: logits[:, 1, 3])
    assert run.gradients is not None
    given = run.gradients
    pairs = [("embed", "resid_pre.0"), ("attn_out.1", "resid_mid.1"), ("mlp_out.1", "resid_post.1")]
    for one, other in [*pairs, ("resid_post.1", "resid_pre.2")]:
        close(given[one], given[other])
    close(given["head_out.1"], given["attn_out.1"][:, :, None].expand(-1, -1, 4, -1))


def test_gradients_pass_a_norm_of_nothing(wrapped: Standardized) -> None:
    """Where attention adds zero, the norm behind it has no gain, and its gradient is 0, not 0 / 0."""
    model = wrapped("olmo2")
    nothing = [Intervention("z.2", "1:3", "zero"), Intervention("head_out.2", "last", "scale", 2.0)]
    run = model.run(IDS[:2], nothing, read="resid_post.1", gradients_of=lambda logits, _: logits[:, 0, 3])
    assert run.gradients is not None
    assert bool(run.gradients["resid_post.1"].isfinite().all()) and float(run.gradients["resid_post.1"].norm()) > 0


def test_a_value_can_be_trained(standardized: Standardized) -> None:
    model = standardized("gpt2")
    vector = torch.zeros(32, requires_grad=True)
    steer = Intervention("resid_post.2", "last", "add", vector)
    run = model.run(IDS, steer, keep_graph=True, batch_size=2)
    assert run.logits is not None
    run.logits[:, 0, 7].sum().backward()
    gradients = model.run(
        IDS, read="resid_post.2", gradients_of=lambda logits, _: logits[:, 0, 7]
    ).gradients  # fmt: skip
    assert vector.grad is not None and gradients is not None
    close(vector.grad, gradients["resid_post.2"].sum((0, 1)))
    detached = model.run(IDS, steer).logits
    assert detached is not None and not detached.requires_grad

"""Visits against nnsight's traces and torch's hooks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.model.resolve import place_of
from interp.model.visits import Visit, Visitor, generation, run_visiting, visit_part
from interp.sites import KINDS, LAYER_KINDS, Site
from tests.families.cases import build
from tests.tiny import tiny_tokenizer

IDS = torch.tensor([[1, 17, 250, 33, 94], [1, 88, 5, 260, 71]])
Standardized = Callable[[str], StandardizedTransformer]


def keeping(kept: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    def keep(value: Tensor) -> None:
        kept[name] = value.clone()

    return keep


def visit(model: StandardizedTransformer, site: str, call: Callable[[Tensor], Tensor | None], **more: bool) -> Visit:
    return Visit(site, place_of(model, model.site(site)), call, **more)


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "bloom", "falcon", "mpt", "jamba", "opt_350m", "dbrx"])
@torch.no_grad()
def test_any_order_gives_what_a_trace_gives(family: str) -> None:
    model = StandardizedTransformer(build(family), tokenizer=tiny_tokenizer(), verify=False)
    every = [
        Site(kind, layer) for kind in KINDS for layer in (range(model.num_layers) if kind in LAYER_KINDS else [None])
    ]
    sites = [site for site in every if model.has(site)]
    visited: dict[str, Tensor] = {}
    visits = [visit(model, str(site), keeping(visited, str(site))) for site in reversed(sites)]
    run_visiting(model, visits, input_ids=IDS, use_cache=False)
    traced = {}
    with model.trace(input_ids=IDS, use_cache=False):
        for site in model.in_order(sites):
            traced[str(site)] = model.read(site).clone()
    assert visited.keys() == traced.keys()
    for name, value in traced.items():
        assert torch.equal(visited[name], value), name


@torch.no_grad()
def test_visits_at_one_place_act_in_the_order_listed(standardized: Standardized) -> None:
    model = standardized("gpt2")
    kept: dict[str, Tensor] = {}
    visits = [
        visit(model, "z.1", lambda value: value + 1),
        visit(model, "z.1", lambda value: value * 2),
        visit(model, "z.1", keeping(kept, "after")),
    ]
    run_visiting(model, [visit(model, "z.1", keeping(kept, "plain"))], input_ids=IDS)
    run_visiting(model, visits, input_ids=IDS)
    torch.testing.assert_close(kept["after"], (kept["plain"] + 1) * 2)


@torch.no_grad()
def test_a_pass_ends_with_the_last_visit(standardized: Standardized) -> None:
    model = standardized("llama")
    ran = []
    hook = model.layer(3)._module.register_forward_hook(lambda *_: ran.append(3))
    try:
        kept: dict[str, Tensor] = {}
        visits = [visit(model, site, keeping(kept, site)) for site in ("resid_post.1", "embed")]
        assert run_visiting(model, visits, stop=True, input_ids=IDS) is None
    finally:
        hook.remove()
    assert kept.keys() == {"resid_post.1", "embed"} and not ran


def test_what_a_visit_returns_is_on_the_path(standardized: Standardized) -> None:
    model = standardized("gemma2")
    kept: dict[str, Tensor] = {}

    def clone(value: Tensor) -> Tensor:
        kept["z"] = value.clone()
        return kept["z"]

    output = run_visiting(model, [visit(model, "head_out.1", clone)], input_ids=IDS)
    (gradient,) = torch.autograd.grad(output.logits[:, -1].square().sum(), kept["z"])
    step, head = 1e-2, kept["z"].detach()[0, 2, 3]
    direction = torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    ends = []
    for sign in (1, -1):
        moved = kept["z"].detach().clone()
        moved[0, 2, 3] += sign * step * direction
        with torch.no_grad():
            output = run_visiting(model, [visit(model, "head_out.1", lambda _, moved=moved: moved)], input_ids=IDS)
        ends.append(output.logits[:, -1].double().square().sum())
    slope = float((ends[0] - ends[1]) / (2 * step))
    assert slope == pytest.approx(float(gradient[0, 2, 3] @ direction), rel=2e-2)


@torch.no_grad()
def test_every_step_of_a_generation(standardized: Standardized) -> None:
    model = standardized("llama")
    shapes = []
    visits = [visit(model, "resid_post.1", lambda value: shapes.append(tuple(value.shape)), every_step=True)]
    given = dict(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False)
    ids = run_visiting(model, visits, fn=generation(model), **given)
    assert ids.shape == (2, 8)
    assert shapes == [(2, 5, 32), (2, 1, 32), (2, 1, 32)]


@torch.no_grad()
def test_a_visitor_that_stays(standardized: Standardized) -> None:
    model = standardized("gpt2")
    zeroing = Visitor(visit(model, "attn_out.0", torch.zeros_like, every_step=True), optional=True)
    model._edits.append(zeroing)
    try:
        with model.trace(input_ids=IDS) as tracer:
            mid, pre = model.read("resid_mid.0").clone().save(), None
            tracer.stop()
        with model.trace(input_ids=IDS) as tracer:  # ends before it is reached: no warning
            pre = model.read("resid_pre.0").clone().save()
            tracer.stop()
        hooked = model._module.transformer.h[0]
        assert torch.equal(mid, pre)
        assert hooked is model.layer(0)._module
        with pytest.raises(InterpError, match="not sent to a server or copied with the model"):
            zeroing.__getstate__()
    finally:
        model._edits.clear()


@torch.no_grad()
def test_a_layer_by_itself(standardized: Standardized) -> None:
    model = standardized("gpt2")
    kept: dict[str, Tensor] = {}
    run_visiting(model, [visit(model, site, keeping(kept, site)) for site in ("resid_pre.2",)], input_ids=IDS)
    run_visiting(
        model, [visit(model, "z.2", torch.zeros_like), visit(model, "resid_post.2", keeping(kept, "whole"))],
        input_ids=IDS,
    )  # fmt: skip
    layer = model.layer(2)._module
    alone = visit_part(
        model, [visit(model, "z.2", torch.zeros_like)], lambda: layer(kept["resid_pre.2"]), tuple(IDS.shape)
    )
    alone = alone if isinstance(alone, Tensor) else alone[0]
    torch.testing.assert_close(alone, kept["whole"])
    with pytest.raises(InterpError, match=r"z\.1: the forward pass did not reach it"):
        visit_part(model, [visit(model, "z.1", torch.zeros_like)], lambda: layer(kept["resid_pre.2"]), (2, 5))
    assert not model.interleaver.mediators


@torch.no_grad()
def test_nothing_is_left_behind_an_error(standardized: Standardized) -> None:
    model = standardized("llama")

    def fail(_: Tensor) -> None:
        raise ZeroDivisionError

    for site in ("embed", "pattern.1", "logits"):
        with pytest.raises(ZeroDivisionError):
            run_visiting(model, [visit(model, site, fail)], input_ids=IDS)
        assert not model.interleaver.mediators and not model.interleaver.interleaving
    kept: dict[str, Tensor] = {}
    run_visiting(model, [visit(model, "logits", keeping(kept, "logits"))], input_ids=IDS)
    assert torch.equal(kept["logits"], model._module(input_ids=IDS).logits)


@torch.no_grad()
def test_many_workers_are_served_as_nnsight_serves_them(standardized: Standardized) -> None:
    """Workers that wait alone are found by their place; beside a block of a trace, nnsight looks at all."""
    model = standardized("gemma2")
    sites = [f"{kind}.{layer}" for kind in ("resid_pre", "attn_out", "z", "pattern") for layer in range(4)]
    given = dict(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False)

    def seen() -> list[Tensor]:
        kept: list[Tensor] = []
        visits = [visit(model, site, lambda value: kept.append(value.clone()), every_step=True) for site in sites]
        once = [visit(model, site, lambda value: kept.append(value.sum())) for site in sites]
        run_visiting(model, [*visits, *once], fn=generation(model), **given)
        assert len(kept) == len(sites) * 4
        return kept

    alone = seen()
    beside = Visitor(visit(model, "embed", lambda _: None), optional=True)
    beside.waits_alone = False
    model._edits.append(beside)
    try:
        assert all(torch.equal(one, other) for one, other in zip(alone, seen(), strict=True))
    finally:
        model._edits.clear()

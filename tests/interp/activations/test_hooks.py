"""Hooks of a model: what they see and change, how long they live, backward, in traces and in generations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import StandardizedTransformer
from interp.activations import Hook
from interp.errors import InterpError
from interp.sites import Site
from tests.interp.reference import IDS, plain, wrapped, writing
from tests.tiny import tiny_model, tiny_tokenizer

RAGGED = [[1, 17, 250, 33, 94, 301], [1, 88, 5]]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.fixture
def model() -> Any:
    model = wrapped("llama")
    yield model
    left = model.list_hooks()
    model.reset_hooks(including_permanent=True)
    assert not left and not model._edits


def zeroed(value: Tensor, site: Site) -> None:
    value[:, -1] = 0


def halved(value: Tensor, site: Site) -> Tensor:
    return value / 2


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma2", "cohere"])
@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "mlp_out", "resid_post"])
@torch.no_grad()
def test_a_hook_writes_what_a_torch_hook_writes(case: str, kind: str) -> None:
    model, site = wrapped(case), f"{kind}.1"
    value = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))
    with writing(case, site, value):
        expected = plain(case)(input_ids=IDS).logits

    def replaced(given: Tensor, at: Site) -> Tensor:
        assert at == Site(kind, 1)
        return value

    def overwritten(given: Tensor, at: Site) -> None:
        given.copy_(value)

    close(model.run_with_hooks(IDS, hooks=[(site, replaced)]), expected)
    close(model.run_with_hooks(IDS, hooks=[(site, overwritten)]), expected)


@torch.no_grad()
def test_hooks_inside_attention_and_of_one_head(model: Any) -> None:
    with model.trace(input_ids=IDS):
        pattern = model.read("pattern.1").clone()
        pattern[:, 2] = 0
        model.write("pattern.1", pattern)
        z = model.read("z.2").clone()
        z[:, :, 1] = 0
        model.write("z.2", z)
        logits = model.logits.clone().save()

    def cut(value: Tensor, site: Site) -> None:
        value[:, 2] = 0

    found = model.run_with_hooks(IDS, hooks=[("pattern.1", cut), ("z.2.h1", lambda value, site: 0 * value)])
    close(found, logits)


def test_the_order_is_that_of_the_list_and_prepended_comes_first(model: Any) -> None:
    order: list[str] = []

    def named(name: str) -> Callable[[Tensor, Site], None]:
        return lambda value, site: order.append(name)

    [first] = model.add_hook("resid_post.1", named("a"))
    model.add_hook("blocks.1.hook_resid_post", named("b"), permanent=True)
    model.add_hook("resid_post.1", named("c"), prepend=True)
    assert [hook.site for hook in model.list_hooks()] == [Site("resid_post", 1)] * 3
    model.run_with_hooks(IDS, hooks=[("resid_post.1", named("d"))])
    assert order == ["c", "a", "b", "d"]
    first.remove()
    assert not first.is_on and len(model.list_hooks()) == 2
    model.reset_hooks()
    assert [hook.permanent for hook in model.list_hooks()] == [True] and "permanent" in repr(model.list_hooks())
    order.clear()
    model.run_with_cache(IDS, sites="embed")
    assert order == ["b"]
    model.reset_hooks(including_permanent=True)


def test_several_sites_and_predicates(model: Any) -> None:
    seen: list[str] = []
    with model.hooks([(lambda site: site.kind == "mlp_out" and site.layer > 1, lambda v, s: seen.append(str(s)))]):
        assert [str(hook.site) for hook in model.list_hooks()] == ["mlp_out.2", "mlp_out.3"]
        model.run_with_cache(IDS, sites="embed")
    assert seen == ["mlp_out.2", "mlp_out.3"]
    seen.clear()
    model.run_with_hooks(IDS, hooks=[("resid_post.0-1 z.*", lambda value, site: seen.append(str(site)))])
    assert seen == ["z.0", "resid_post.0", "z.1", "resid_post.1", "z.2", "z.3"]


@torch.no_grad()
def test_a_cache_sees_what_hooks_have_made(model: Any) -> None:
    _, clean = model.run_with_cache(IDS, sites="resid_post.1")
    with model.hooks([("resid_post.1", halved)]):
        _, cache = model.run_with_cache(IDS, sites="resid_post.1")
    close(cache["resid_post.1"], clean["resid_post.1"] / 2)


# How long they live ---------------------------------------------------------------------------------------------------


def broken(value: Tensor, site: Site) -> None:
    raise ZeroDivisionError


def misshapen(value: Tensor, site: Site) -> Tensor:
    return value[:, :1]


def test_hooks_are_gone_after_an_exception_at_every_point(model: Any) -> None:
    """In a hook, in what it returns, in the prompts, in the block, in a trace, in a generation, in a backward pass."""
    fine = ("resid_post.0", halved)
    for bad, error in ((broken, ZeroDivisionError), (misshapen, InterpError)):
        for site in ("embed", "q.1", "pattern.2", "z.1.h0", "mlp_post.3", "logits"):
            with pytest.raises(error):
                model.run_with_hooks(IDS, hooks=[fine, (site, bad)])
            assert not model._edits
    with pytest.raises(InterpError, match=r"expected token ids"):
        model.run_with_hooks([[1, 5000]], hooks=[fine])
    with pytest.raises(InterpError, match="Did you mean"):
        model.run_with_hooks(IDS, hooks=[fine, ("resid_pots.1", halved)])
    with pytest.raises(InterpError, match="true of no site"):
        model.run_with_hooks(IDS, hooks=[fine, (lambda site: False, halved)])
    with pytest.raises(InterpError, match=r"list of \(site, function\)"):
        model.run_with_hooks(IDS, hooks=["resid_post.1"])
    with pytest.raises(InterpError, match="expected a function"):
        model.run_with_hooks(IDS, hooks=[("resid_post.1", 3)])
    with pytest.raises(ZeroDivisionError), model.hooks([fine], [("resid_post.2", halved)]):
        assert len(model.list_hooks()) == 2
        raise ZeroDivisionError
    assert not model._edits
    with pytest.raises(ZeroDivisionError), model.hooks([("resid_post.1", broken)]), model.trace(input_ids=IDS):
        pass
    with (
        pytest.raises(ZeroDivisionError),
        model.hooks([("resid_post.1", broken)]),
        model.generate(input_ids=IDS, max_new_tokens=2),
    ):
        pass
    with pytest.raises(ZeroDivisionError):
        model.run_with_hooks(IDS, backward_hooks=[("resid_post.1", broken)]).sum().backward()
    model.zero_grad()
    assert not model._edits and not model.list_hooks()
    close(model.run_with_cache(IDS, sites="embed")[0], plain("llama")(input_ids=IDS).logits.detach())


def test_a_removed_hook_is_still_at_once(model: Any) -> None:
    steps: list[int] = []

    def once(value: Tensor, site: Site) -> None:
        steps.append(value.shape[1])
        for hook in model.list_hooks():
            hook.remove()

    model.add_hook("resid_post.0-3", once)
    with model.generate(input_ids=IDS, max_new_tokens=3):
        pass
    assert steps == [6]


def test_nested_blocks_take_off_their_own(model: Any) -> None:
    with model.hooks([("resid_post.1", halved)]):
        with model.hooks([("resid_post.2", halved)]):
            assert len(model.list_hooks()) == 2
        assert len(model.list_hooks()) == 1


def test_a_model_is_freed_with_its_hooks() -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    [hook] = model.add_hook("resid_post.1", halved)
    assert isinstance(hook, Hook) and hook in model.list_hooks()
    model.run_with_cache(IDS, sites="embed")
    model.clear_edits()  # nnsight's: it is one of them
    assert not model.list_hooks()


# Backward -------------------------------------------------------------------------------------------------------------


def test_backward_hooks_see_and_replace_gradients(model: Any) -> None:
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor, Site], None]:
        return lambda gradient, site: seen.update({name: gradient.clone()})

    def doubled(gradient: Tensor, site: Site) -> None:
        gradient *= 2

    def last(logits: Tensor) -> Tensor:
        return logits[0, -1, 7]

    _, cache = model.run_with_cache(IDS, sites="embed", gradients="embed resid_post.1", gradients_of=last)
    logits = model.run_with_hooks(
        IDS, backward_hooks=[("resid_post.1", doubled), ("resid_post.1", keep("after")), ("embed", keep("embed"))]
    )
    assert not model.list_hooks()
    last(logits).backward()
    close(seen["after"], 2 * cache.gradients["resid_post.1"])
    close(seen["embed"], 2 * cache.gradients["embed"])
    model.zero_grad()
    with model.hooks([], [("embed", keep("block"))]):
        kept = model.run_with_hooks(IDS)
    last(kept).backward()
    assert "block" not in seen  # the backward pass came after the block
    model.zero_grad()
    model.add_hook("embed", keep("later"), direction="backward", permanent=True)
    model.add_hook("embed", halved, direction="backward", prepend=True)
    assert model.list_hooks()[0].function is halved
    last(model.run_with_hooks(IDS)).backward()
    close(seen["later"], cache.gradients["embed"] / 2)
    model.zero_grad()
    model.reset_hooks(direction="forward")
    assert len(model.list_hooks()) == 2
    model.reset_hooks(including_permanent=True, direction="backward")
    with torch.no_grad(), pytest.raises(InterpError, match="gradients are off"):
        model.run_with_hooks(IDS, backward_hooks=[("embed", halved)])
    with pytest.raises(InterpError, match="forward or backward"):
        model.add_hook("embed", halved, direction="sideways")


def test_a_backward_hook_tells_the_gradient_of_what_goes_on(model: Any) -> None:
    seen: list[Tensor] = []
    logits = model.run_with_hooks(
        IDS, hooks=[("resid_post.3", halved)], backward_hooks=[("resid_post.3", lambda g, s: seen.append(g.clone()))]
    )
    logits[0, -1, 7].backward()
    model.zero_grad()
    stream = model.run_with_cache(IDS, sites="resid_post.3")[1]["resid_post.3"] / 2
    stream.requires_grad_()
    model.readout(stream)[0, -1, 7].backward()
    close(seen[0], stream.grad)  # type: ignore[arg-type]
    model.zero_grad()


# Where they act -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_each_step_of_a_generation(model: Any) -> None:
    steps: list[tuple[int, ...]] = []

    def steered(value: Tensor, site: Site) -> None:
        steps.append(tuple(value.shape[:2]))
        value[:, -1] += 3

    given: dict[str, Any] = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)
    with model.hooks([("resid_post.1", steered)]), model.generate(input_ids=IDS, **given) as tracer:
        ids = tracer.result.save()
    assert steps == [(2, 6), (2, 1), (2, 1), (2, 1)]
    grown = IDS  # the same without a cache: every token was steered once, when it was the last

    def each(value: Tensor, site: Site) -> None:
        value[:, 5:] += 3

    for _ in range(4):
        logits = model.run_with_hooks(grown, hooks=[("resid_post.1", each)])
        grown = torch.cat([grown, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(ids, grown)


@torch.no_grad()
def test_traces_and_prompts_of_different_lengths(model: Any) -> None:
    with model.hooks([("resid_post.1", zeroed)]), model.trace(input_ids=IDS):
        seen = model.read("resid_post.1").clone().save()
        logits = model.logits.clone().save()
    assert not seen[:, -1].any()
    close(model.run_with_hooks(IDS, hooks=[("resid_post.1", zeroed)]), logits)
    for side in ("left", "right"):
        found = model.run_with_hooks(RAGGED, hooks=[("resid_post.1", zeroed)], padding_side=side)
        for row, ids in enumerate(RAGGED):
            alone = model.run_with_hooks([ids], hooks=[("resid_post.1", zeroed)])
            close(found[row, : len(ids)], alone[0])
            assert found[row, len(ids) :].isnan().all()


@torch.no_grad()
def test_parts_of_the_model(model: Any) -> None:
    entering = model.run_with_hooks(IDS, hooks=[("resid_post.0", halved)], stop_at_layer=1)
    close(entering, model.run_with_cache(IDS, sites="resid_post.0")[1]["resid_post.0"] / 2)
    whole = model.run_with_hooks(IDS, hooks=[("resid_post.0", halved), ("resid_post.2", zeroed)])
    close(model.run_with_hooks(entering, hooks=[("resid_post.2", zeroed)], start_at_layer=1), whole)
    with pytest.raises(InterpError, match="ends before layer 1"):
        model.run_with_hooks(IDS, hooks=[("resid_post.2", halved)], stop_at_layer=1)


@torch.no_grad()
def test_a_backward_hook_that_is_not_called_is_told_of(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    called: list[Any] = []
    [hook] = model.add_hook("resid_post.2", lambda gradient, site: called.append(site), direction="backward")
    try:
        for _ in range(2):
            model.run_with_cache(IDS, sites="embed")
    finally:
        hook.remove()
    assert not called
    assert caplog.text.count("the backward hook on resid_post.2 is not called: this pass has no gradients") == 1

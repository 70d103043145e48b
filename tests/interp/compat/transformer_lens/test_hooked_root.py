"""`HookedRootModule` on a module of one's own: what TransformerLens does, and no more that is swallowed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp import InterpError
from interp.compat.transformer_lens import HookedRootModule, HookPoint, TransformerBridge
from tests.interp.compat.transformer_lens.ours import OURS, done
from tests.interp.compat.transformer_lens.recorded_models import scenario
from tests.interp.compat.transformer_lens.scenarios import module_class

TOKENS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.fixture
def model() -> Any:
    return module_class(OURS)()


@pytest.mark.parametrize("name", ["hooks", "caches"])
def test_does_what_transformer_lens_does(name: str) -> None:
    assert done(name) == scenario(name)


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda m: m.run_with_cache(TOKENS, names_filter="blocks.0.hook_patern"), "'blocks.0.hook_pattern'"),
        (lambda m: m.run_with_cache(TOKENS, names_filter=["hook_out", "hook_embedd"]), "'hook_embed'"),
        (lambda m: m.run_with_cache(TOKENS, names_filter=lambda name: "resid" in name), "true of none"),
        (lambda m: m.run_with_cache(TOKENS, names_filter=[]), "empty list"),
        (lambda m: m.run_with_cache(TOKENS, names_filter=3), "a name, a list of names, a function"),
        (lambda m: m.run_with_cache(TOKENS, name_filter="hook_out"), "'names_filter'"),
        (lambda m: m.run_with_cache(TOKENS, return_cache_object=True), "dictionary"),
        (lambda m: m.run_with_cache(TOKENS, incl_bwd=True, pos_slice="last"), "a slice is"),
        (lambda m: m.run_with_cache(TOKENS, pos_slice=7, names_filter="hook_embed"), "does not fit axis"),
        (lambda m: m.run_with_cache(TOKENS.expand(2, -1), remove_batch_dim=True), "a batch of one; this is one of 2"),
        (lambda m: m.run_with_hooks(TOKENS, fwd_hook=[]), "'fwd_hooks'"),
        (lambda m: m.run_with_hooks(TOKENS, fwd_hooks=[("hook_oat", print)]), "'hook_out'"),
        (lambda m: m.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: False, print)]), "true of none"),
        (lambda m: m.run_with_hooks(TOKENS, fwd_hooks=("hook_out", print)), "list of (name, hook)"),
        (lambda m: m.run_with_hooks(TOKENS, bwd_hooks=[("hook_out", print)]), "reset_hooks_end=False"),
        (lambda m: m.add_hook("blocks.0", print), "is a module and no hook point"),
        (lambda m: m.add_hook("hook_out", "print"), "a hook is a function"),
        (lambda m: m.add_hook("hook_out", print, dir="forward"), "'fwd' or 'bwd'"),
        (lambda m: m.reset_hooks(direction="all"), "'fwd', 'bwd' or 'both'"),
        (lambda m: m.list_hooks("hook_ouf"), "'hook_out'"),
        (lambda m: m.hook_dict["hook_out"].layer(), "blocks.LAYER"),
        (lambda m: HookPoint().layer(), "blocks.LAYER"),
    ],
)  # fmt: skip
def test_refuses_what_transformer_lens_swallows(model: Any, act: Callable[[Any], Any], told: str) -> None:
    with pytest.raises(InterpError) as error:
        act(model)
    assert told in str(error.value)
    assert model.list_hooks() == {}


def test_a_forward_without_further_keywords_takes_none() -> None:
    class Strict(HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            self.hook_out = HookPoint()
            self.setup()

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return torch.as_tensor(self.hook_out(x * scale))

    model = Strict()
    assert model.run_with_cache(TOKENS, scale=2)[1]["hook_out"].tolist() == (2 * TOKENS).tolist()
    with pytest.raises(InterpError, match="no argument 'attention', and neither has the model"):
        model.run_with_hooks(TOKENS, attention=1)
    with pytest.raises(InterpError, match="pos_dim"):
        model.run_with_cache(TOKENS.float(), pos_slice=0)
    model.hook_out.pos_dim = 1
    assert model.run_with_cache(TOKENS.float(), pos_slice=(1, 3))[1]["hook_out"].tolist() == [[2, 3]]


def test_a_module_without_hook_points_is_refused_at_setup() -> None:
    with pytest.raises(InterpError, match="has no HookPoint"):
        HookedRootModule().setup()


def test_positions_of_token_ids_are_along_positions(model: Any) -> None:
    _, cache = model.run_with_cache(TOKENS, names_filter="hook_tokens", pos_slice=(1, 3))
    assert cache["hook_tokens"].tolist() == [[2, 3]]


def test_cached_values_are_copies(model: Any) -> None:
    plain = model.run_with_cache(TOKENS)[1]

    def edit(tensor: torch.Tensor, hook: Any) -> None:
        tensor.mul_(0)

    with torch.no_grad():
        kept, forward, _ = model.get_caching_hooks("hook_embed")
        changed = model.run_with_hooks(TOKENS, fwd_hooks=[*forward, ("hook_embed", edit)])
    assert torch.equal(kept["hook_embed"], plain["hook_embed"]) and changed == 0


def test_hooks_are_gone_after_an_exception_at_every_point(model: Any) -> None:
    def fail(tensor: torch.Tensor, hook: Any) -> None:
        raise RuntimeError(hook.name)

    for name in model.hook_dict:
        with pytest.raises(RuntimeError, match=name):
            model.run_with_hooks(TOKENS, fwd_hooks=[(name, fail)])
        assert model.list_hooks() == {} and model.context_level == 0
    with pytest.raises(InterpError), model.hooks([("hook_out", fail), ("hook_ouf", fail)], reset_hooks_end=False):
        pass
    assert model.list_hooks() == {}


def test_a_kept_hook_outlives_the_next_block(model: Any) -> None:
    """TransformerLens removes it with the next block of the same depth."""
    model.run_with_hooks(TOKENS, fwd_hooks=[("hook_out", lambda tensor, hook: tensor * 0)], reset_hooks_end=False)
    with model.hooks([("hook_embed", lambda tensor, hook: None)]):
        pass
    assert [len(each) for each in model.list_hooks().values()] == [1] and model(TOKENS) == 0


def test_backward_hooks_see_one_another_and_go_when_removed(model: Any) -> None:
    seen: list[torch.Tensor] = []
    model.add_hook("hook_out", lambda gradient, hook: gradient * 2, dir="bwd")
    model.add_hook("hook_out", lambda gradient, hook: seen.append(gradient), dir="bwd")
    loss = model(TOKENS)
    loss.backward(retain_graph=True)
    model.reset_hooks()
    loss.backward()
    value = model.run_with_cache(TOKENS, names_filter="hook_out")[1]["hook_out"]
    assert len(seen) == 1 and torch.allclose(seen[0], 2 * 2 * value / value.numel())


def test_a_gradient_is_seen_where_the_tensor_is_edited_after_the_point() -> None:
    class Adding(HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            self.hook_out = HookPoint()
            self.setup()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.hook_out(x * 2)
            out += 1  # Falcon's layers do it
            return out.square().sum()

    x = torch.ones(1, 2, 3, requires_grad=True)
    _, cache = Adding().run_with_cache(x, incl_bwd=True)
    assert torch.equal(cache["hook_out_grad"], torch.full((1, 2, 3), 6.0))
    assert x.grad is not None and torch.equal(x.grad, torch.full((1, 2, 3), 12.0))


def test_checks_of_ones_own_are_asked_for_every_hook() -> None:
    class Checked(module_class(OURS)):  # type: ignore[misc]
        def check_hooks_to_add(self, hook_point: HookPoint, hook_point_name: str, hook: Any, **more: Any) -> None:
            if hook_point_name == "hook_out":
                raise InterpError("not there")

    model = Checked()
    model.check_and_add_hook(model.hook_dict["hook_embed"], "hook_embed", print, prepend=True, level=3)
    assert [each.context_level for each in model.list_hooks()["hook_embed"]] == [3]
    model.reset_hooks()
    for act in (
        lambda: model.add_hook(lambda name: True, print),
        lambda: model.add_perma_hook("hook_out", print),
        lambda: model.run_with_cache(TOKENS),
        lambda: model.check_and_add_hook(model.hook_dict["hook_out"], "hook_out", print),
    ):
        with pytest.raises(InterpError, match="not there"):
            act()
        model.reset_hooks()


def test_gradients_need_a_number_and_gradients(model: Any) -> None:
    with torch.no_grad(), pytest.raises(InterpError, match="they are off here"):
        model.run_with_cache(TOKENS, incl_bwd=True)
    whole = type(model)()
    whole.forward = lambda tokens: whole.hook_embed(whole.table[tokens])
    with pytest.raises(InterpError, match="must give one number"):
        whole.run_with_cache(TOKENS, names_filter="hook_embed", incl_bwd=True)
    assert whole.list_hooks() == {}


def test_a_handle_takes_its_hook_off(model: Any) -> None:
    point = model.hook_dict["hook_out"]
    handle = point.add_hook(lambda tensor, hook: tensor * 0)
    assert model(TOKENS) == 0 and handle.attached and repr(point) == "HookPoint(name='hook_out', 1 fwd)"
    handle.remove()
    handle.remove()
    assert model(TOKENS) != 0 and not handle.attached and not point.has_hooks()


# Every method of TransformerLens's page, with its arguments.
NAMES_FILTER = "names_filter incl_bwd device remove_batch_dim cache"
ADDED = "hook dir is_permanent level prepend"
METHODS = {
    "add_caching_hooks": NAMES_FILTER,
    "add_hook": f"name {ADDED}",
    "add_perma_hook": "name hook dir",
    "cache_all": "cache incl_bwd device remove_batch_dim",
    "cache_some": "cache names incl_bwd device remove_batch_dim",
    "check_and_add_hook": f"hook_point hook_point_name {ADDED}",
    "check_hooks_to_add": "hook_point hook_point_name hook dir is_permanent prepend",
    "clear_contexts": "",
    "get_caching_hooks": f"{NAMES_FILTER} pos_slice",
    "hook_points": "",
    "hooks": "fwd_hooks bwd_hooks reset_hooks_end clear_contexts",
    "list_hooks": "name_filter dir including_permanent",
    "remove_all_hook_fns": "direction including_permanent level",
    "reset_hooks": "clear_contexts direction including_permanent level",
    "run_with_cache": "names_filter device remove_batch_dim incl_bwd reset_hooks_end clear_contexts pos_slice",
    "run_with_hooks": "fwd_hooks bwd_hooks reset_hooks_end clear_contexts",
    "setup": "",
}


@pytest.mark.parametrize("kind", [HookedRootModule, TransformerBridge])
def test_every_method_of_the_page_takes_its_arguments(kind: type) -> None:
    for name, arguments in METHODS.items():
        inspect.signature(getattr(kind, name)).bind(None, **dict.fromkeys(arguments.split()))
        own = inspect.signature(getattr(HookedRootModule, name)).parameters
        named = [each for each, is_a in own.items() if is_a.kind not in (is_a.VAR_POSITIONAL, is_a.VAR_KEYWORD)]
        assert named[1 : 1 + len(arguments.split())] == arguments.split(), name

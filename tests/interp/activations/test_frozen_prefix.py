"""A prefix is computed once; what follows gives what whole prompts give, with caches, hooks and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interp import StandardizedTransformer
from interp.errors import InterpError
from interp.interventions import Intervention
from interp.sites import Site
from tests.families import build as build_family
from tests.interp.reference import wrapped
from tests.made import watching
from tests.tiny import tiny_model, tiny_tokenizer

PREFIX = [1, 17, 250, 33, 94, 301, 5, 6, 77]  # longer than the windows of Gemma 2 and Mistral here
RESTS = [[9, 10, 11], [40, 50], [60]]
FAMILIES = ["llama", "gpt2", "gemma2", "mistral", "gpt_neox", "mixtral"]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def zeroed(value: Tensor, site: Site) -> None:
    value[:, -1] = 0


@pytest.mark.parametrize("case", FAMILIES)
def test_what_follows_is_what_whole_prompts_give(case: str) -> None:
    model = wrapped(case)
    prefix = model.freeze_prefix([PREFIX])
    start = len(PREFIX)
    for sites in ("resid_post.* z.* logits", "resid_post.1 q.1 k.1 v.2 pattern.1 pattern.3"):  # shared, or copied
        for _ in range(2):  # it is read, and never written
            logits, cache = model.run_with_cache(RESTS, prefix=prefix, sites=sites)
        assert cache.lengths == [start + len(rest) for rest in RESTS] and cache.input_ids == [
            PREFIX + rest for rest in RESTS
        ]
        for row, rest in enumerate(RESTS):
            whole, expected = model.run_with_cache([PREFIX + rest], sites=sites)
            count = len(rest)
            close(logits[row, :count], whole[0, start:])
            for site in cache:
                found, wanted, axes = cache[site][row], expected[site][0], cache.axes(site)[1:]
                for axis, name in enumerate(axes):
                    if name in ("position", "query"):
                        found, wanted = found.narrow(axis, 0, count), wanted.narrow(axis, start, count)
                    elif name == "key":
                        found = found.narrow(axis, 0, start + count)
                close(found, wanted)


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2"])
@torch.no_grad()
def test_hooks_act_on_what_follows(case: str) -> None:
    model = wrapped(case)
    hooks = [("resid_post.1", zeroed), ("pattern.2.h1", lambda value, site: value / 2)]
    with model.hooks([("resid_post.0", zeroed)]):  # not on the prefix
        prefix = model.freeze_prefix([PREFIX])
    found = model.run_with_hooks(RESTS, hooks=hooks, prefix=prefix)

    for row, rest in enumerate(RESTS):
        whole = model.run_with_hooks([PREFIX + rest], hooks=[("resid_post.1", zeroed), ("pattern.2", _halved_behind)])
        close(found[row, : len(rest)], whole[0, len(PREFIX) :])


def _halved_behind(value: Tensor, site: Site) -> None:
    value[:, 1, len(PREFIX) :] /= 2


def test_many_rows_in_batches_and_with_gradients() -> None:
    model = wrapped("llama")
    prefix = model.freeze_prefix([PREFIX])
    rests = [[9 + row, 10 + row] for row in range(7)]
    logits, cache = model.run_with_cache(rests, prefix=prefix, sites="resid_post.2", batch_size=3)
    whole, expected = model.run_with_cache([PREFIX + rest for rest in rests], sites="resid_post.2")
    close(logits, whole[:, len(PREFIX) :])
    close(cache["resid_post.2"], expected["resid_post.2"][:, len(PREFIX) :])
    given: dict[str, Any] = dict(sites="embed", gradients="resid_post.1 pattern.2")
    _, cache = model.run_with_cache(rests, prefix=prefix, gradients_of=lambda logits: logits[:, -1, 7].sum(), **given)
    _, expected = model.run_with_cache(
        [PREFIX + rest for rest in rests], gradients_of=lambda logits: logits[:, -1, 7].sum(), **given
    )
    close(cache.gradients["resid_post.1"], expected.gradients["resid_post.1"][:, len(PREFIX) :])
    close(cache.gradients["pattern.2"], expected.gradients["pattern.2"][:, :, len(PREFIX) :])


def test_several_prefixes_of_one_length() -> None:
    model = wrapped("gpt2")
    other = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    prefix = model.freeze_prefix([PREFIX, other])
    assert len(prefix) == 2 and prefix.length == 9
    rests = [[9, 10, 11], [40, 50, 3], [60], [61]]
    logits, cache = model.run_with_cache(rests, prefix=prefix, sites="resid_post.1", batch_size=3)
    for row, rest in enumerate(rests):
        whole, _ = model.run_with_cache([[PREFIX, other][row % 2] + rest], sites="embed")
        close(logits[row, : len(rest)], whole[0, 9:])
    assert cache.input_ids == [[PREFIX, other][row % 2] + rest for row, rest in enumerate(rests)]
    with pytest.raises(InterpError, match="multiple of 2"):
        model.run_with_cache([[1]], prefix=prefix)
    with pytest.raises(InterpError, match="one length"):
        model.freeze_prefix([PREFIX, other[:3]])


def test_texts_follow_without_a_start_token() -> None:
    model = wrapped("llama")
    prefix = model.freeze_prefix("The quick brown")
    logits, cache = model.run_with_cache(" fox jumps", prefix=prefix, sites="embed")
    ids = (
        model.tokenizer("The quick brown")["input_ids"]
        + model.tokenizer(" fox jumps", add_special_tokens=False)["input_ids"]
    )  # type: ignore[operator]
    assert cache.input_ids == [ids]
    close(logits[0], model.run_with_cache([ids], sites="embed")[0][0, prefix.length :])


@torch.no_grad()
def test_a_thawed_copy_goes_on_in_a_generation() -> None:
    model = wrapped("gemma2")
    prefix = model.freeze_prefix([PREFIX])
    whole = torch.tensor([[*PREFIX, 9, 10], [*PREFIX, 40, 50]])
    given: dict[str, Any] = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False)
    with model.generate(input_ids=whole, past_key_values=prefix.thawed(2), **given) as tracer:
        found = tracer.result.save()
    with model.generate(input_ids=whole, **given) as tracer:
        expected = tracer.result.save()
    assert torch.equal(found, expected)
    logits, _ = model.run_with_cache([[9, 10]], prefix=prefix, sites="embed")  # the prefix is as it was
    close(logits[0], model.run_with_cache(whole[:1], sites="embed")[0][0, len(PREFIX) :])


@pytest.mark.parametrize("family", ["jamba", "mamba", "zamba2"])
def test_layers_with_a_state_of_their_own_are_refused(family: str) -> None:
    model = StandardizedTransformer(build_family(family), tokenizer=tiny_tokenizer())
    with pytest.raises(InterpError, match="run the prompts whole"):
        model.freeze_prefix([PREFIX])


def test_what_would_give_other_numbers_is_refused() -> None:
    model = wrapped("llama")
    prefix = model.freeze_prefix([PREFIX])
    other = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    with pytest.raises(InterpError, match="another model"):
        other.run_with_cache(RESTS, prefix=prefix)
    with pytest.raises(InterpError, match="goes through all layers"):
        model.run_with_cache(torch.zeros(1, 2, 32), prefix=prefix, start_at_layer=1)
    hook = other.layer(1)._module.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(InterpError, match="add_hook"):
        other.freeze_prefix([PREFIX])
    hook.remove()
    gpt2 = wrapped("gpt2")
    with pytest.raises(InterpError, match="256 positions"):
        gpt2.run_with_cache([[5] * 250], prefix=gpt2.freeze_prefix([PREFIX]))
    counted = model.mlps[0]._module.register_forward_hook(watching(lambda *_: None))
    model.run_with_cache(RESTS, prefix=prefix)
    counted.remove()


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_interventions_act_on_what_follows(case: str) -> None:
    model = wrapped(case)
    prefix = model.freeze_prefix([PREFIX])
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    added = [
        Intervention("resid_post.1", "last", "add", vector),
        Intervention("z.2.h1", "first", "zero"),
        Intervention("k.3", "first", "scale", 2.0),
    ]
    logits, cache = model.run_with_cache(RESTS, prefix=prefix, interventions=added, sites="resid_post.1-3")
    for row, rest in enumerate(RESTS):
        first = len(PREFIX)
        same = [
            Intervention("resid_post.1", "last", "add", vector),
            Intervention("z.2.h1", first, "zero"),
            Intervention("k.3", first, "scale", 2.0),
        ]
        whole, expected = model.run_with_cache([PREFIX + rest], interventions=same, sites="resid_post.1-3")
        close(logits[row, : len(rest)], whole[0, first:])
        close(cache["resid_post.3"][row, : len(rest)], expected["resid_post.3"][0, first:])
        run = model.run([PREFIX + rest], same, positions="all")
        close(run.logits[0], whole[0])
    with pytest.raises(InterpError, match="ends before layer 2"):
        model.run_with_cache(RESTS, interventions=added, stop_at_layer=2)

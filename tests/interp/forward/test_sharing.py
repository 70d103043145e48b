"""Attention over a shared prefix against copies of its keys for every row, and transformers left as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface

from interp.forward.shared_attention import Shared, attend_to, hold, sharing
from interp.model.verdicts import verdicts_of
from interp.patching import CleanRun, walk_fits
from interp.patching.patched_runs import WALKERS_READ_ONE_PREFIX
from tests.interp.patching.test_walk import wrapped

# Grouped queries, a sliding window, a softcap, parallel layers, norms after, experts, sinks, learned positions.
SHARING = ["llama", "mistral", "gemma2", "gemma3_text", "phi", "cohere2", "olmo2", "mixtral", "gpt_oss", "gpt2", "opt"]
COPYING = ["gptj", "falcon_alibi", "mpt", "deepseek_v3", "diffllama"]


@pytest.mark.parametrize("name", SHARING)
def test_families_of_every_kind_share(name: str) -> None:
    model = wrapped(name)
    assert walk_fits(model, 9)
    assert verdicts_of(model)[WALKERS_READ_ONE_PREFIX]


@pytest.mark.parametrize("name", COPYING)
def test_families_with_attention_of_their_own_are_given_copies(name: str) -> None:
    model = wrapped(name)
    assert walk_fits(model, 9)
    assert not verdicts_of(model)[WALKERS_READ_ONE_PREFIX]


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("start", [0, 1, 6, 11])
@torch.no_grad()
def test_a_shared_prefix_gives_what_copies_give(name: str, prompts: int, start: int) -> None:
    model = wrapped(name)
    assert walk_fits(model, 9)
    generator = torch.Generator().manual_seed(start)
    run = CleanRun.of(model, torch.randint(300, (prompts, 12), generator=generator), start)
    for layer in range(model.num_layers):
        rows = run.hidden(layer - 1).repeat(4, 1, 1)
        rows = rows + rows.std() * torch.randn(rows.shape, generator=generator)
        blocked = torch.zeros(4 * prompts, 1, 12 - start, 12, dtype=torch.bool)
        blocked[1, :, -1, 2:5] = True
        for hidden in (None, blocked):
            shared = run.through(layer, rows, hidden)
            verdicts_of(model)[WALKERS_READ_ONE_PREFIX] = False
            try:
                copied = run.through(layer, rows, hidden)
            finally:
                verdicts_of(model)[WALKERS_READ_ONE_PREFIX] = True
            torch.testing.assert_close(shared, copied, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_attention_is_a_softmax_over_the_prefix_and_the_rows_own_tokens(data: st.DataObject) -> None:
    prompts, copies, key_heads, group, before, positions, size = (data.draw(st.integers(1, 4)) for _ in range(7))
    rows, heads = prompts * copies, key_heads * group
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    prefix = Shared(draw(prompts, key_heads, before, size), draw(prompts, key_heads, before, size + 1))
    query, key, value = (draw(rows, n, positions, size + e) for n, e in ((heads, 0), (key_heads, 0), (key_heads, 1)))
    mask = torch.rand(rows, 1, positions, before + positions, generator=generator) < 0.7
    mask[..., 0] = True
    scaling = data.draw(st.sampled_from([0.3, None]))
    softcap = data.draw(st.sampled_from([2.0, None]))
    sinks = draw(heads) if data.draw(st.booleans()) else None
    found, _ = attend_to(
        prefix, torch.nn.Identity(), query, key, value, mask, scaling=scaling, softcap=softcap, s_aux=sinks
    )
    for row in range(rows):
        for head in range(heads):
            own = head // group
            keys = torch.cat([prefix.keys[row % prompts, own], key[row, own]])
            values = torch.cat([prefix.values[row % prompts, own], value[row, own]])
            scores = query[row, head] @ keys.T * (size**-0.5 if scaling is None else scaling)
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            exp = scores.exp() * mask[row, 0]
            total = exp.sum(-1, keepdim=True) + (0 if sinks is None else sinks[head].exp())
            torch.testing.assert_close(found[row, :, head], (exp / total) @ values, rtol=1e-5, atol=1e-5)


def test_transformers_is_as_it_was_afterwards_and_nothing_is_held_outside() -> None:
    before = AttentionInterface.get_interface
    module, nothing = torch.nn.Identity(), Shared(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ZeroDivisionError), sharing(module), sharing(module):
        assert AttentionInterface.get_interface is not before
        assert hold(module, nothing) and not hold(torch.nn.Identity(), nothing)
        raise ZeroDivisionError
    assert AttentionInterface.get_interface is before
    assert not hold(module, nothing)


@pytest.mark.parametrize("name", ["mpt", "falcon_alibi", "llama"])
@torch.no_grad()
def test_as_many_prompts_as_heads_are_not_taken_for_heads(name: str) -> None:
    model = wrapped(name)
    assert walk_fits(model, 9)
    generator = torch.Generator().manual_seed(0)
    for prompts in {model.num_heads, model.num_kv_heads}:
        ids = torch.randint(300, (prompts, 7), generator=generator)
        run = CleanRun.of(model, ids, 4)
        for layer in range(model.num_layers):
            again = run.through(layer, run.hidden(layer - 1))
            torch.testing.assert_close(again, run.hidden(layer), rtol=1e-4, atol=1e-5)

"""Prompts in one row against each alone: the attention by itself, and whole families, whole and behind a prefix."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from interp import StandardizedTransformer
from interp.activations import collect
from interp.architectures import submodule
from interp.forward.packing import Packed
from interp.forward.shared_attention import Shared, attend_to
from interp.sites import Site
from tests.families import build
from tests.interp.forward.alone import BUDGET, off_by, prompts
from tests.tiny import tiny_tokenizer

# Grouped queries; a window; windows, norms after and a softcap; sinks and windows; learned positions; parallel layers;
# experts; norms of queries and keys; keys without rotation in some layers.
DRAWN = ["llama", "mistral", "gemma2", "gemma3_text", "gpt_oss", "gpt2", "opt", "phi", "mixtral", "olmo2", "cohere2"]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_attention_in_one_row_is_that_of_each_prompt(data: st.DataObject) -> None:
    lengths = sorted(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)), reverse=True)
    key_heads, group, size = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)), 4
    before, window = data.draw(st.integers(0, 5)), data.draw(st.sampled_from([None, 1, 2, 4]))
    tokens, heads = sum(lengths), key_heads * group
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, *shape, size, generator=generator, dtype=torch.float64)

    query, key, value = draw(heads, tokens), draw(key_heads, tokens), draw(key_heads, tokens)
    prefix = Shared(draw(key_heads, before), draw(key_heads, before))
    distance = torch.arange(before, before + tokens)[:, None] - torch.arange(before + tokens)
    seen = (distance >= 0) & (distance < (window or before + tokens))  # by places in the row, as models make masks
    mask = None if window is None and data.draw(st.booleans()) else seen[None, None]
    packed = Packed.of(lengths, torch.device("cpu"))
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = True, group  # type: ignore[assignment]

    def attend(*args: Any) -> Any:
        return attend_to(prefix, *args) if before else sdpa_attention_forward(*args)

    found, _ = packed.through(attend, module, query, key, value, mask)
    assert found.shape == (1, tokens, heads, size)
    start = 0
    for length in lengths:
        own = slice(start, start + length)
        for head in range(heads):
            keys = torch.cat([prefix.keys[0, head // group], key[0, head // group, own]])
            values = torch.cat([prefix.values[0, head // group], value[0, head // group, own]])
            scores = query[0, head, own] @ keys.T * size**-0.5
            scores = scores.masked_fill(~seen[:length, : before + length], -torch.inf)
            torch.testing.assert_close(found[0, own, head], scores.softmax(-1) @ values, rtol=1e-6, atol=1e-6)
        start += length


@pytest.mark.parametrize("name", DRAWN)
@settings(deadline=None, max_examples=6)
@given(data=st.data())
@torch.no_grad()
def test_continuations_of_any_lengths_are_what_whole_prompts_are(name: str, data: st.DataObject) -> None:
    model, plain = wrapped(name)
    length = data.draw(st.integers(1, 24))
    ends = data.draw(st.lists(st.integers(1, 24), min_size=2, max_size=6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    header, *ends_ids = (torch.randint(3, 300, (n,), generator=generator).tolist() for n in (length, *ends))
    input_ids = [header + end for end in ends_ids]
    for share in (True, False):
        found = read(model, input_ids, share=share)
        for row, ids in enumerate(input_ids):
            assert off_by(found[:, row, 0], residuals(model, plain, ids)[:, -1]) < 1e-5


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_what_is_read_in_the_middle_of_prompts(name: str) -> None:
    model, plain = wrapped(name)
    sites = [Site("resid_post", layer) for layer in range(model.num_layers)]
    everywhere = [range(len(ids)) for ids in prompts()]
    found = collect(model, prompts(), sites, everywhere, batch_tokens=BUDGET)["resid_post"]
    for row, ids in enumerate(prompts()):
        assert off_by(found[:, row, : len(ids)], residuals(model, plain, ids)) < 1e-5


@cache
def wrapped(name: str) -> tuple[StandardizedTransformer, nn.Module]:
    """A family's model, and the same that nothing has touched."""
    return StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False), build(name)


def read(model: StandardizedTransformer, input_ids: list[list[int]], *, share: bool) -> Tensor:
    """(layer, prompt, 1, hidden) at the last tokens; a beginning is shared where that saves a token."""
    sites = [Site("resid_post", layer) for layer in range(model.num_layers)]
    last = [[len(ids) - 1] for ids in input_ids]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.batching.BATCH_COST", 0.01)
        patch.setattr("interp.activations.read_batch.WORTH", 1)
        return collect(model, input_ids, sites, last, batch_tokens=BUDGET, share_prefixes=share)["resid_post"]


@torch.no_grad()
def residuals(model: StandardizedTransformer, plain: nn.Module, ids: list[int]) -> Tensor:
    """(layer, position, hidden) by plain transformers."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: Any, output: Any) -> None:
        seen.append((output if isinstance(output, Tensor) else output[0])[0].clone())

    layers: Any = submodule(plain, model.architecture.layers)
    handles = [layer.register_forward_hook(keep) for layer in layers]
    plain(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(seen)

"""Keys and values: TransformerLens's bookkeeping, and a prefix that gives what the whole prompt gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp import InterpError, StandardizedTransformer
from interp.compat.transformer_lens import TransformerBridgeConfig, TransformerLensKeyValueCache
from tests.interp.compat.transformer_lens.ours import done
from tests.interp.compat.transformer_lens.recorded_models import made, scenario, words

PREFIX = torch.tensor([[1, 7, 12, 30, 9]])
ENDS = torch.tensor([[12, 4, 8], [6, 6, 20], [31, 5, 11]])


def test_it_keeps_what_transformer_lens_keeps() -> None:
    assert done("key_values") == scenario("key_values")


def config_of(module: Any) -> TransformerBridgeConfig:
    return TransformerBridgeConfig.from_model(StandardizedTransformer(module, tokenizer=words(), verify=False))


def run(module: Any, ids: torch.Tensor, cache: TransformerLensKeyValueCache) -> torch.Tensor:
    """A run as a model makes it that is given `past_kv_cache=`."""
    mask, past = torch.ones_like(ids), cache.to_transformers(len(ids))
    whole = cache.extended_attention_mask(mask)
    with torch.no_grad():
        logits: torch.Tensor = module(ids, attention_mask=whole, past_key_values=past, use_cache=True).logits
    cache.append_from(past, mask)
    return logits


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "falcon"])
def test_a_frozen_prefix_gives_what_the_whole_prompt_gives(family: str) -> None:
    module = made(family)
    cfg = config_of(module)
    cache = TransformerLensKeyValueCache.init_cache(cfg, None)
    run(module, PREFIX, cache)
    cache.freeze()
    with torch.no_grad():
        whole = module(torch.cat([PREFIX.expand(3, -1), ENDS], 1)).logits[:, 5:]
    for _ in range(2):
        torch.testing.assert_close(run(module, ENDS, cache), whole, rtol=0, atol=1e-5)
        torch.testing.assert_close(run(module, ENDS[1:2], cache), whole[1:2], rtol=0, atol=1e-5)
    heads = cfg.n_key_value_heads or cfg.n_heads
    assert cache.length == 5 and cache[1].past_keys.shape == (1, 5, heads, cfg.d_head)


def test_one_that_is_not_frozen_grows() -> None:
    module = made("llama")
    cache = TransformerLensKeyValueCache.init_cache(config_of(module), "cpu")
    run(module, PREFIX, cache)
    first = run(module, ENDS, cache)[:, -1:]
    last = run(module, ENDS[:, :1], cache)
    with torch.no_grad():
        whole = module(torch.cat([PREFIX.expand(3, -1), ENDS, ENDS[:, :1]], 1)).logits[:, -2:]
    torch.testing.assert_close(torch.cat([first, last], 1), whole, rtol=0, atol=1e-5)
    assert cache.length == 9 and cache[0].past_values.shape == (3, 9, 2, 4)
    with pytest.raises(InterpError, match="3 rows and the run 2"):
        run(module, ENDS[:2], cache)


def test_what_does_not_fit_is_refused() -> None:
    cfg = TransformerBridgeConfig(8, 2, 2, 16, device="cpu")
    cache = TransformerLensKeyValueCache.init_cache(cfg, None, batch_size=2)
    with pytest.raises(InterpError, match="not of one run"):
        cache[0].append(torch.zeros(2, 1, 4, 2), torch.zeros(2, 2, 4, 2))
    with pytest.raises(InterpError, match="do not go behind"):
        cache[0].append(torch.zeros(2, 1, 3, 2), torch.zeros(2, 1, 3, 2))
    cache.append_attention_mask(torch.ones(2, 1, dtype=torch.int))
    with pytest.raises(InterpError, match="layer 0 has 0: append both"):
        cache.to_transformers(2)
    other = TransformerLensKeyValueCache.init_cache(TransformerBridgeConfig(8, 2, 1, 16), None)
    with pytest.raises(InterpError, match="kept 0 layers"):
        cache.append_from(other.to_transformers(1), torch.ones(1, 1))
    with pytest.raises(InterpError, match="keep a state in place of keys"):
        TransformerLensKeyValueCache.init_cache(TransformerBridgeConfig(8, 2, 2, 16, is_stateful=True), None)


def test_layers_may_differ_in_heads() -> None:
    cfg = TransformerBridgeConfig(
        8, 2, 2, 16, n_heads=4, per_layer_num_key_value_heads=[1, None], per_layer_head_dim=[4, 2], device="cpu"
    )
    cache = TransformerLensKeyValueCache.init_cache(cfg, None)
    assert [entry.past_keys.shape for entry in cache.entries] == [(1, 0, 1, 4), (1, 0, 4, 2)]

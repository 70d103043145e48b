"""The last layer that is needed at the tokens that are read, against plain transformers in every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp import StandardizedTransformer
from interp.activations import collect
from interp.model.verdicts import verdicts_of
from interp.sites import parse_sites
from tests.interp.forward.alone import BUDGET, prompts
from tests.made import watching
from tests.tiny import NUM_LAYERS, tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few tokens the layer is spared."""
    monkeypatch.setattr("interp.activations.read_batch.WORTH", 1)


def tokens_of_mlps(model: StandardizedTransformer, run: Callable[[], Any]) -> list[int]:
    """How many tokens go through the MLP of each layer."""
    counts = [0] * NUM_LAYERS
    handles = []
    for layer in range(NUM_LAYERS):

        def count(_: torch.nn.Module, args: Any, output: torch.Tensor, layer: int = layer) -> None:
            counts[layer] += output[..., 0].numel()

        handles.append(model._module.get_submodule(f"model.layers.{layer}.mlp").register_forward_hook(watching(count)))
    run()
    for handle in handles:
        handle.remove()
    return counts


def test_only_what_is_read_goes_through_the_last_layer() -> None:
    model = StandardizedTransformer(tiny_model("qwen2"), tokenizer=tiny_tokenizer())
    ids = [prompt[:5] for prompt in prompts()[:6]]
    last, every = [[4]] * 6, [range(5)] * 6

    def counts(sites: str, positions: Any) -> list[int]:
        def run() -> None:
            collect(model, ids, parse_sites(sites, NUM_LAYERS), positions, share_prefixes=False)

        run()  # finds out once that it fits
        return tokens_of_mlps(model, run)

    assert counts("resid_post.*", last) == [30, 30, 30, 6]
    assert counts("embed resid_pre.2 resid_post.2", last) == [30, 30, 6, 0]
    assert counts("resid_post.1 attn_out.1", last) == [30, 30, 0, 0]  # something inside it is read too
    assert counts("resid_post.*", every) == [30] * 4
    assert counts("final_norm", last) == [30] * 4


def test_what_is_read_beside_it_is_what_is_asked_for() -> None:
    model = StandardizedTransformer(tiny_model("gemma2"), tokenizer=tiny_tokenizer())
    ids = prompts()
    positions = [[len(prompt) - 1] for prompt in ids]
    for text in ("resid_post.2 resid_pre.2 attn_out.1 embed", "resid_post.0", "embed resid_pre.0 resid_post.0"):
        sites = parse_sites(text, NUM_LAYERS)
        found = collect(model, ids, sites, positions, batch_tokens=BUDGET)
        everywhere = [range(len(prompt)) for prompt in ids]  # the last layer then runs at all tokens
        whole = collect(model, ids, sites, everywhere, batch_tokens=BUDGET)
        assert list(found) == list(whole)
        for kind, values in found.items():
            for row, (place,) in enumerate(positions):
                torch.testing.assert_close(values[:, row, 0], whole[kind][:, row, place], rtol=1e-5, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in model._module.modules())


def test_a_model_that_looks_ahead_runs_its_last_layer_at_all_tokens() -> None:
    module = tiny_model("gemma3_text", use_bidirectional_attention=True, sliding_window=64)
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    sites = parse_sites("resid_post.*", NUM_LAYERS)
    ids = [prompt[:5] for prompt in prompts()[:6]]
    found = collect(model, ids, sites, [[4]] * 6)["resid_post"]
    for row, prompt in enumerate(ids):
        alone = collect(model, [prompt], sites, [range(5)])["resid_post"]
        torch.testing.assert_close(found[:, row, 0], alone[:, 0, 4], rtol=1e-5, atol=1e-5)
    assert verdicts_of(model) == {"causal": False}

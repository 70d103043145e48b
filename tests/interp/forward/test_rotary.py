"""Rotation that depends on the length of what is fed: every lens against plain transformers, prompt by prompt."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.activations import collect
from interp.lenses import (
    Latents,
    attention_knockout,
    attention_object_lens,
    patchscope_generate,
    patchscope_grid,
    patchscope_lens,
)
from interp.model.verdicts import verdicts_of
from interp.sites import Site
from tests.interp.lenses.attention_twins import cut_logits, received_logits
from tests.made import one_each
from tests.tiny import NUM_LAYERS, tiny_model, tiny_tokenizer

LIMIT = 12  # tokens of the "training" before the rotation was stretched
_DYNAMIC = dict(rope_type="dynamic", rope_theta=1e3, factor=3.0)
_LONG = dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[4.0, 5.0, 6.0, 8.0])
ROPES: dict[str, dict[str, Any]] = {
    "longrope": dict(rope_parameters=dict(_LONG, rope_theta=1e3, factor=20.0, original_max_position_embeddings=LIMIT)),
    "dynamic": dict(rope_parameters=_DYNAMIC, max_position_embeddings=LIMIT),
}
GENERATOR = torch.Generator().manual_seed(0)
# Below, at and above the limit, in no order; two that are alike.
PROMPTS = [torch.randint(3, 400, (length,), generator=GENERATOR).tolist() for length in (23, 5, 12, 13, 40)]
PROMPTS.append(PROMPTS[0])
POSITIONS = [2, 4, 9, 12, 30, 22]
LATENTS = 3 * torch.randn(NUM_LAYERS, len(PROMPTS), 32, generator=GENERATOR)
GROUPS = [[[3, 4], [7]]] * len(PROMPTS)


def plain(rope: str) -> nn.Module:
    """A fresh one for each prompt: `dynamic` remembers the longest that it has seen."""
    return tiny_model("llama", attn_implementation="eager", **ROPES[rope])


def standardized(rope: str) -> StandardizedTransformer:
    return StandardizedTransformer(plain(rope), tokenizer=tiny_tokenizer(), verify=False)


@torch.no_grad()
def logits_of(rope: str, ids: Sequence[int], position: int, written: Mapping[int, Tensor]) -> np.ndarray:
    """(vocabulary,) after the last token, with latents written after some layers at one token."""
    model = plain(rope)

    def writing(latent: Tensor) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            output[0, position] = latent

        return hook

    for layer, latent in written.items():
        model.get_submodule(f"model.layers.{layer}").register_forward_hook(writing(latent))
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].double().numpy()


def by_group(logits: np.ndarray) -> list[float]:
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    return [probabilities[[3, 4]].sum(), probabilities[7]]


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("site", ["resid_post", "resid_pre"])  # on a walk, and by whole forward passes
def test_patchscopes(rope: str, site: str) -> None:
    model, before = standardized(rope), 1 if site == "resid_pre" else 0
    layers = list(range(before, NUM_LAYERS))
    lens = patchscope_lens(model, Latents(LATENTS[before:], layers), PROMPTS, one_each(POSITIONS), GROUPS, site=site)
    grid = patchscope_grid(
        model, Latents(LATENTS[[0, 3]], [0, 3]), PROMPTS, one_each(POSITIONS), GROUPS, target_layers=[2], site=site
    )
    assert site == "resid_pre" or verdicts_of(model)["walk"]
    for example, (ids, position) in enumerate(zip(PROMPTS, POSITIONS, strict=True)):
        assert lens.baseline is not None
        np.testing.assert_allclose(np.exp(lens.baseline[example]), by_group(logits_of(rope, ids, 0, {})), atol=1e-5)
        for index, layer in enumerate(layers):
            wanted = by_group(logits_of(rope, ids, position, {layer - before: LATENTS[layer, example]}))
            np.testing.assert_allclose(np.exp(lens.log_prob[example, index]), wanted, atol=1e-5)
        for index, source in enumerate((0, 3)):
            wanted = by_group(logits_of(rope, ids, position, {2 - before: LATENTS[source, example]}))
            np.testing.assert_allclose(np.exp(grid.log_prob[example, index, 0]), wanted, atol=1e-5)


@pytest.mark.parametrize("rope", ROPES)
def test_generation_over_the_limit(rope: str, caplog: pytest.LogCaptureFixture) -> None:
    chosen, tokens = [1, 2, 3], 9  # of 5, 12 and 13 tokens
    model = standardized(rope)
    given: Any = ([PROMPTS[n] for n in chosen], [[POSITIONS[n]] for n in chosen])
    with caplog.at_level(logging.WARNING, logger="interp"):
        found = patchscope_generate(
            model, Latents(LATENTS[:, chosen], range(NUM_LAYERS)), *given, layers=[3, 0],
            max_new_tokens=tokens, stop_ids=(),
        )  # fmt: skip
    for example, number in enumerate(chosen):
        for place, layer in enumerate((3, 0)):
            ids = list(PROMPTS[number])
            for _ in range(tokens):
                ids.append(int(logits_of(rope, ids, POSITIONS[number], {layer: LATENTS[layer, number]}).argmax()))
            assert list(found.ids[example][place]) == ids[len(PROMPTS[number]) :]
    said = "LlamaForCausalLM: prompts of more than 12 tokens, by whose length it rotates, run as a whole."
    assert [record.message for record in caplog.records] == [said]


@pytest.mark.parametrize("way", ["fast", "slow"])
@pytest.mark.parametrize("rope", ROPES)
def test_lenses_on_attention(rope: str, way: str) -> None:
    model = standardized(rope)
    if way == "slow":
        verdicts_of(model).update({"attention that is cut": False, "attention that receives other vectors": False})
    blocks = [{"block": [len(ids) // 2, 1]} for ids in PROMPTS]
    cut = attention_knockout(model, PROMPTS, blocks, GROUPS, window=2, layers=[0, 2])
    received = attention_object_lens(
        model, Latents(LATENTS, range(NUM_LAYERS)), PROMPTS, one_each(POSITIONS), GROUPS, window=2, layers=[0, 2]
    )
    for example, (ids, position) in enumerate(zip(PROMPTS, POSITIONS, strict=True)):
        edges = [(len(ids) - 1, key) for key in blocks[example]["block"]]
        for index, window in enumerate(([0, 1], [2, 3])):
            module: Any = plain(rope)
            wanted = by_group(cut_logits(module, module.model.layers, ids, window, edges))
            np.testing.assert_allclose(np.exp(cut.log_prob[example, index, 0]), wanted, atol=1e-5)
            module = plain(rope)
            attentions = {layer: module.model.layers[layer].self_attn for layer in window}
            latents = {layer: LATENTS[layer, example] for layer in window}
            wanted = by_group(received_logits(module, attentions, ids, position, latents))
            np.testing.assert_allclose(np.exp(received.log_prob[example, index]), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
def test_layers_that_rotate_in_two_ways(kind: str) -> None:
    """One of them by length: which one is main does not matter, and what ran before changes nothing."""
    default = dict(rope_type="default", rope_theta=1e3)
    rope = {"full_attention": default, "sliding_attention": default} | {kind: _DYNAMIC}
    config: dict[str, Any] = dict(rope_parameters=rope, max_position_embeddings=LIMIT, sliding_window=6)
    model = StandardizedTransformer(tiny_model("gemma3_text", **config), tokenizer=tiny_tokenizer(), verify=False)
    last = [Site("resid_post", NUM_LAYERS - 1)]
    for _ in range(2):
        found = collect(model, PROMPTS, last, [[len(ids) - 1] for ids in PROMPTS])["resid_post"][0, :, 0]
        for ids, hidden in zip(PROMPTS, found, strict=True):
            plain_model: Any = tiny_model("gemma3_text", **config)
            seen: list[Tensor] = []
            layer = plain_model.model.layers[NUM_LAYERS - 1]
            layer.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output[0, -1].clone()))
            with torch.no_grad():
                plain_model(input_ids=torch.tensor([ids]), use_cache=False)
            torch.testing.assert_close(hidden, seen[0], atol=1e-4, rtol=1e-4)


def test_what_ran_before_changes_nothing() -> None:
    model = standardized("dynamic")
    first = patchscope_lens(
        model, Latents(LATENTS[:, 3:4], range(NUM_LAYERS)), PROMPTS[3:4], [[12]], GROUPS[:1]
    ).log_prob
    with torch.no_grad():
        model._module(input_ids=torch.tensor([[*range(3, 90)]]), use_cache=False)
    again = patchscope_lens(
        model, Latents(LATENTS[:, 3:4], range(NUM_LAYERS)), PROMPTS[3:4], [[12]], GROUPS[:1]
    ).log_prob
    np.testing.assert_array_equal(first, again)

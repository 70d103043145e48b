"""The walk up the layers against plain transformers with a hook, in every family."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.architectures import submodule
from interp.lenses import Latents, patchscope_lens
from interp.model.verdicts import verdicts_of
from tests.families import FAMILIES, build
from tests.made import one_each, watching
from tests.tiny import tiny_tokenizer

# Where it does not fit, the lens runs whole prompts: layers that carry a state, that share keys or hand things on, and
# families whose masks and biases hold a row for each of the batch.
SLOW = {
    "gemma4_text", "gemma4", "deepseek_v32", "glm_moe_dsa", "dots3_note_text", "axk2", "inkling_text", "qwen3_next",
    "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "kimi_linear", "bailing_hybrid", "minimax", "lfm2", "lfm2_moe",
    "lfm3", "jamba", "bamba", "falcon_h1", "granitemoehybrid", "granitemoehybrid_dense", "nemotron_h",
    "recurrent_gemma", "mamba", "mamba2", "falcon_mamba", "zamba", "zamba2", "bloom", "bloom_post_norm", "xglm",
    "openai-gpt",
}  # fmt: skip

# Target prompts, and the token of each that is patched: the last one, one in the middle, the first.
TARGETS = [
    ([1, 17, 250, 33, 94, 301, 77], 6),
    ([1, 17, 250, 33, 94, 301, 77], 6),
    ([1, 60, 250, 33, 94, 301, 12], 6),
    ([1, 17, 250, 33, 94, 301, 77], 3),
    ([1, 88, 5], 0),
]
GROUPS = [[[3, 9], [200]], [[5], [77, 78]], [[120], [7]], [[301], [2, 4]], [[33], [399]]]


@cache
def wrapped(name: str) -> StandardizedTransformer:
    return StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False)


def latents_of(model: StandardizedTransformer) -> Tensor:
    shape = (model.num_layers, len(TARGETS), model.hidden_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def probabilities(model: StandardizedTransformer, plain: nn.Module, latents: Tensor, *, from_layer: bool) -> np.ndarray:
    """(example, layer, group), and behind the layers a row without a patch; a forward pass of a plain model for each
    example, in which each row of the batch is patched at a layer of its own."""
    layers: Any = submodule(plain, model.architecture.layers)
    found = np.empty((len(TARGETS), model.num_layers + 1, 2))
    for example, (ids, position) in enumerate(TARGETS):
        handles = []
        for index, layer in enumerate(layers):

            def patch(_: nn.Module, args: Any, output: Any, written: Any = (index, example, position)) -> Any:
                hidden = (output if isinstance(output, Tensor) else output[0]).clone()
                rows = slice(0 if from_layer else written[0], written[0] + 1)
                hidden[rows, written[2]] = latents[written[0], written[1]]
                return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

            handles.append(layer.register_forward_hook(patch))
        batch = torch.tensor([ids] * (model.num_layers + 1))
        predicted = plain(input_ids=batch, use_cache=False).logits[:, -1].double().softmax(-1)
        for handle in handles:
            handle.remove()
        for at, group in enumerate(GROUPS[example]):
            found[example, :, at] = predicted[:, group].sum(-1)
    return found


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_lens_is_what_single_patched_prompts_give(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, plain = wrapped(name), build(name)
    latents = latents_of(model)
    ids, positions = [list(ids) for ids, _ in TARGETS], [position for _, position in TARGETS]
    layers = range(model.num_layers)
    for patch in ("one_layer", "from_layer"):
        with caplog.at_level(logging.WARNING, logger="interp"):
            result = patchscope_lens(
                model, Latents(latents, layers), ids, one_each(positions), GROUPS, patch=patch, batch_size=2
            )  # type: ignore[arg-type]
        expected = probabilities(model, plain, latents, from_layer=patch == "from_layer")
        np.testing.assert_allclose(np.exp(result.log_prob), expected[:, :-1], atol=1e-5)
        assert result.baseline is not None
        np.testing.assert_allclose(np.exp(result.baseline), expected[:, -1], atol=1e-5)
    said = [record.message for record in caplog.records if "as a whole" in record.message]
    assert len(said) == (name in SLOW), said  # said once, in one line
    assert verdicts_of(model)["walk"] == (name not in SLOW)


@torch.no_grad()
def test_some_layers_and_a_batch_larger_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped("llama")
    latents = latents_of(model)
    ids, positions = [list(ids) for ids, _ in TARGETS], [position for _, position in TARGETS]
    whole = patchscope_lens(model, Latents(latents, range(model.num_layers)), ids, one_each(positions), GROUPS)
    monkeypatch.setattr("interp.batching.WALKING_TOKENS", 1)
    few = patchscope_lens(model, Latents(latents[1:3], [1, 2]), ids, one_each(positions), GROUPS)
    np.testing.assert_allclose(few.log_prob, whole.log_prob[:, 1:3], atol=1e-5)


@torch.no_grad()
def test_a_family_whose_walk_gives_other_numbers_is_found_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A layer that counts its calls stands for any state that a walk would disturb."""
    module = build("llama")
    calls = [0]

    def count(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        calls[0] += 1
        return output * (1.0 if output.shape[1] > 1 else 1.5)

    module.get_submodule("model.layers.2.mlp").register_forward_hook(watching(count))
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    latents = latents_of(model)
    ids, positions = [list(ids) for ids, _ in TARGETS], [position for _, position in TARGETS]
    with caplog.at_level(logging.WARNING, logger="interp"):
        patchscope_lens(model, Latents(latents, range(model.num_layers)), ids, one_each(positions), GROUPS)
    assert "gives other numbers in this family" in caplog.text
    assert verdicts_of(model)["walk"] is False
    assert calls[0] > 0

"""A user's own hooks and forward passes, which count tokens from either end: collecting and lenses give what plain
transformers gives with the same hook, prompt by prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from interp import StandardizedTransformer
from interp.activations import collect
from interp.lenses import (
    Latents,
    attention_knockout,
    attention_object_lens,
    logit_lens,
    patchscope_generate,
    patchscope_grid,
    patchscope_lens,
)
from interp.model.hooks import hooks_aside, users_hook
from interp.model.verdicts import verdicts_of
from interp.sites import Site
from interp.translators.data import TokenSequence
from interp.translators.states import token_states
from tests.interp.lenses.attention_twins import cut_logits, received_logits
from tests.made import one_each
from tests.tiny import NUM_LAYERS, tiny_model, tiny_tokenizer

HEADER = list(range(20, 60))  # what some prompts begin with, long enough to be worth sharing
PROMPTS = [[1, *HEADER, 17, 33, 250], [1, *HEADER, 8], [1, 7, 9, 30, 4], [1, *HEADER, 99, 98], [1, 3, 5, 88, 201, 6, 9]]
POSITIONS = [12, 40, 1, 20, 3]
VECTOR = 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))
LATENTS = torch.randn(NUM_LAYERS, len(PROMPTS), 32, generator=torch.Generator().manual_seed(2))
GROUPS = [[[3, 4], [7]]] * len(PROMPTS)


def steer_last(_: nn.Module, __: Any, output: Any) -> None:
    hidden = output if isinstance(output, Tensor) else output[0]
    hidden[:, -1] += VECTOR


def steer_logits(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    output = output.clone()
    output[:, -1, 3] += 2.0
    return output


def steer_third(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    output = output.clone()
    output[:, 2] += VECTOR
    return output


def before_last(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    hidden = args[0].clone()
    hidden[:, -1] += VECTOR
    return (hidden, *args[1:]), kwargs


def replaced(module: nn.Module) -> None:
    """An MLP whose forward pass is replaced on the one module."""
    mlp: Any = module.get_submodule("model.layers.1.mlp")
    run = mlp.forward

    def forward(x: Tensor) -> Tensor:
        y = run(x)
        y[:, -1] += VECTOR
        return y

    mlp.forward = forward


def hooked(path: str, hook: Any, **options: Any) -> Callable[[nn.Module], None]:
    return lambda module: module.get_submodule(path).register_forward_hook(hook, **options) and None


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "the last token after a layer": hooked("model.layers.1", steer_last),
    "the third token after a layer": hooked("model.layers.1", steer_third),
    "the last token after the last layer": hooked("model.layers.3", steer_last),
    "the last token after the final norm": hooked("model.norm", steer_last),
    "the last token of the logits": hooked("lm_head", steer_logits),
    "the last token after attention": hooked("model.layers.2.self_attn", steer_last),
    "the last token before a layer": lambda module: (
        module.get_submodule("model.layers.2").register_forward_pre_hook(before_last, with_kwargs=True) and None
    ),
    "a forward pass of its own": replaced,
}


def changed(change: str, plain: bool = False) -> Any:
    """A model with the hook, registered after everything has been found out; the plain one beside it has been run."""
    module = tiny_model("llama", attn_implementation="eager")
    if plain:
        CHANGES[change](module)
        return module
    if change == "a forward pass of its own":  # nnsight puts itself before what is there when it wraps a model
        CHANGES[change](module)
        return StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    residuals(model)
    lens(model)
    assert verdicts_of(model)["walk"] and verdicts_of(model)["causal"] and verdicts_of(model)["prompts in one row"]
    CHANGES[change](module)
    return model


def residuals(model: StandardizedTransformer) -> Tensor:
    """(layer, prompt, 2, hidden), at the last token and at one before it."""
    ends = [[len(ids) - 1, 2] for ids in PROMPTS]
    return collect(model, PROMPTS, [Site("resid_post", layer) for layer in range(NUM_LAYERS)], ends)["resid_post"]


def lens(model: StandardizedTransformer) -> Any:
    return patchscope_lens(model, Latents(LATENTS, range(NUM_LAYERS)), PROMPTS, one_each(POSITIONS), GROUPS)


@torch.no_grad()
def plain_run(module: Any, ids: Sequence[int], written: dict[int, tuple[int, Tensor]] | None = None) -> Any:
    """(layer, position, hidden) and (vocabulary,) of one prompt, with latents written after the user's hooks."""
    seen: list[Tensor] = []

    def hook(index: int) -> Any:
        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            for position, latent in [written[index]] if written and index in written else []:
                output[0, position] = latent
            seen.append(output[0].clone())

        return keep

    handles = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(module.model.layers)]
    logits = module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return torch.stack(seen), logits


def by_group(logits: Tensor) -> list[float]:
    probabilities = logits.double().softmax(-1)
    return [float(probabilities[[3, 4]].sum()), float(probabilities[7])]


@pytest.mark.parametrize("change", CHANGES)
def test_collecting_and_lenses_of_the_residual_stream(change: str, caplog: pytest.LogCaptureFixture) -> None:
    model, module = changed(change), changed(change, plain=True)
    with caplog.at_level(logging.WARNING, logger="interp"):
        found = residuals(model)
        read = lens(model)
        grid = patchscope_grid(
            model, Latents(LATENTS[[0, 3]], [0, 3]), PROMPTS, one_each(POSITIONS), GROUPS, target_layers=[0, 2]
        )
        logit = logit_lens(model, PROMPTS, targets={"a": [3, 4], "b": [7]})
        sequences = [TokenSequence(ids, [1] * len(ids)) for ids in PROMPTS]
        states = token_states(model, sequences, [1])
    assert len(caplog.records) == 1
    assert "prompts are run as a whole (slow): a fast way would show" in caplog.records[0].message
    at = 0
    for row, (ids, position) in enumerate(zip(PROMPTS, POSITIONS, strict=True)):
        stream, logits = plain_run(module, ids)
        torch.testing.assert_close(found[:, row], stream[:, [-1, 2]], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(states.by_layer[1][at : at + len(ids)], stream[1], atol=1e-4, rtol=1e-4)
        at += len(ids)
        np.testing.assert_allclose(np.exp(logit.log_prob[row, -1]), by_group(logits), atol=1e-5)
        np.testing.assert_allclose(np.exp(read.baseline[row]), by_group(logits), atol=1e-5)
        for layer in range(NUM_LAYERS):
            _, logits = plain_run(module, ids, {layer: (position, LATENTS[layer, row])})
            np.testing.assert_allclose(np.exp(read.log_prob[row, layer]), by_group(logits), atol=1e-5)
        _, logits = plain_run(module, ids, {2: (position, LATENTS[3, row])})
        np.testing.assert_allclose(np.exp(grid.log_prob[row, 1, 1]), by_group(logits), atol=1e-5)


def test_generation_and_lenses_on_attention() -> None:
    change = "the last token after a layer"
    model, module = changed(change), changed(change, plain=True)
    chosen, window = [2, 4], [2, 3]
    ids, positions = [PROMPTS[row] for row in chosen], [POSITIONS[row] for row in chosen]
    texts = patchscope_generate(
        model, Latents(LATENTS[1:2, chosen], [1]), ids, one_each(positions), max_new_tokens=4, stop_ids=()
    )
    cut = attention_knockout(model, ids, [{"b": [1, 2]}] * 2, GROUPS[:2], window=2, layers=[2])
    received = attention_object_lens(
        model,
        Latents(LATENTS[:, chosen], range(NUM_LAYERS)),
        ids,
        one_each(positions),
        GROUPS[:2],
        window=2,
        layers=[2],
    )
    layers: Any = module.model.layers
    for row, (own, position) in enumerate(zip(ids, positions, strict=True)):
        written, latent = list(own), LATENTS[1, chosen[row]]
        for _ in range(4):
            written.append(int(plain_run(module, written, {1: (position, latent)})[1].argmax()))
        assert list(texts.ids[row][0]) == written[len(own) :]
        wanted = cut_logits(module, layers, own, window, [(len(own) - 1, key) for key in (1, 2)])
        np.testing.assert_allclose(np.exp(cut.log_prob[row, 0, 0]), by_group(torch.as_tensor(wanted)), atol=1e-5)
        attentions = {layer: layers[layer].self_attn for layer in window}
        wanted = received_logits(
            module, attentions, own, position, {layer: LATENTS[layer, chosen[row]] for layer in window}
        )
        np.testing.assert_allclose(np.exp(received.log_prob[row, 0]), by_group(torch.as_tensor(wanted)), atol=1e-5)


def test_a_hook_on_all_modules_and_one_that_is_gone() -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), verify=False)
    module = tiny_model("llama")

    def steer(part: nn.Module, args: Any, output: Any) -> None:
        if type(part).__name__ == "LlamaMLP":
            steer_last(part, args, output)

    before = residuals(model)
    handle = nn.modules.module.register_module_forward_hook(steer)
    try:
        found = residuals(model)
        wanted = [plain_run(module, ids)[0][:, [-1, 2]] for ids in PROMPTS]
    finally:
        handle.remove()
    torch.testing.assert_close(found, torch.stack(wanted, dim=1), atol=1e-4, rtol=1e-4)
    assert (found - before).abs().max() > 1e-2
    torch.testing.assert_close(residuals(model), before, atol=0, rtol=0)


def test_edits_count_from_either_end() -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), verify=False)
    residuals(model)
    with model.edit() as (_, edited):
        hidden = edited.read("resid_post.1").clone()
        hidden[:, -1] += VECTOR
        hidden[:, 2] -= VECTOR
        edited.write("resid_post.1", hidden)
    module: Any = tiny_model("llama")

    def both(_: nn.Module, __: Any, output: Tensor) -> None:
        output[:, -1] += VECTOR
        output[:, 2] -= VECTOR

    module.model.layers[1].register_forward_hook(both)
    read, found = lens(edited), residuals(edited)
    for row, (ids, position) in enumerate(zip(PROMPTS, POSITIONS, strict=True)):
        torch.testing.assert_close(found[2:, row], plain_run(module, ids)[0][2:, [-1, 2]], atol=1e-4, rtol=1e-4)
        _, logits = plain_run(module, ids, {2: (position, LATENTS[2, row])})
        np.testing.assert_allclose(np.exp(read.log_prob[row, 2]), by_group(logits), atol=1e-5)


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def test_what_changes_weights_alone_is_no_hook_of_the_user_s() -> None:
    """Parametrizations, pruning, and the hooks of libraries know no tokens: the fast ways stay."""
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), verify=False)
    modules: list[Any] = [model._module, tiny_model("llama")]
    for module in modules:
        parametrize.register_parametrization(module.model.layers[1].mlp.up_proj, "weight", _Doubled())
        prune.l1_unstructured(module.model.layers[2].mlp.down_proj, "weight", 0.5)
    assert users_hook(model._module) is None
    found = residuals(model)
    assert verdicts_of(model)["prompts in one row"]
    for row, ids in enumerate(PROMPTS):
        stream = plain_run(modules[1], ids)[0]
        torch.testing.assert_close(found[:, row], stream[:, [-1, 2]], atol=1e-4, rtol=1e-4)


def test_hooks_stand_aside_and_come_back_in_their_order() -> None:
    module, ran = tiny_model("llama"), []
    layer = module.get_submodule("model.layers.0")
    for name in "ab":
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    ids = torch.tensor([[1, 5]])
    with hooks_aside(module):
        module(input_ids=ids)
    assert ran == []
    module(input_ids=ids)
    assert ran == ["a", "b"]

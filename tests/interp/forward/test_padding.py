"""What padding does to a model of a user's own, which counts positions from the first column and reads no mask."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import StandardizedTransformer
from interp.activations import collect
from interp.architectures import RenameConfig
from interp.errors import InterpError
from interp.lenses import Latents, logit_lens, patchscope_generate, patchscope_grid, patchscope_lens
from interp.model.verdicts import verdicts_of
from interp.sites import Site
from interp.translators.data import TokenSequence
from interp.translators.states import token_states
from tests.families import build
from tests.interp.forward.small import MaskedForCausalLM, SmallForCausalLM, small_model
from tests.made import one_each
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = [[1, 17, 250, 33, 94], [1, 9], [1, 40, 41, 7, 8, 301, 77], [1, 5, 6, 88, 3], [1, 200, 12]]
POSITIONS = [2, 1, 3, 4, 0]
LATENTS = torch.randn(3, len(PROMPTS), 32, generator=torch.Generator().manual_seed(0))
GROUPS = [[[3, 4], [7]]] * len(PROMPTS)
KINDS: dict[str, type[SmallForCausalLM]] = {"no mask": SmallForCausalLM, "unread mask": MaskedForCausalLM}


def standardized(kind: str, *, renamed: bool = False) -> StandardizedTransformer:
    names = RenameConfig(layers_name="transformer.h", attn_name="attn", mlp_name="mlp") if renamed else None
    return StandardizedTransformer(small_model(KINDS[kind]), tokenizer=tiny_tokenizer(), rename_config=names)


@torch.no_grad()
def plain_run(module: Any, ids: list[int], written: dict[int, tuple[int, Tensor]] | None = None) -> Any:
    """(layer, position, hidden) and (vocabulary,) of one prompt, with latents written after layers."""
    seen: list[Tensor] = []

    def hook(index: int) -> Any:
        def keep(_: Any, __: Any, output: Tensor) -> None:
            for position, latent in [written[index]] if written and index in written else []:
                output[0, position] = latent
            seen.append(output[0].clone())

        return keep

    handles = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(module.transformer.h)]
    logits = module(torch.tensor([ids])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return torch.stack(seen), logits


def by_group(logits: Tensor) -> list[float]:
    probabilities = logits.double().softmax(-1)
    return [float(probabilities[[3, 4]].sum()), float(probabilities[7])]


@pytest.mark.parametrize(("kind", "renamed"), [("no mask", False), ("unread mask", False), ("unread mask", True)])
def test_everything_that_pads_gives_what_single_prompts_give(kind: str, renamed: bool) -> None:
    model, module = standardized(kind, renamed=renamed), small_model(KINDS[kind])
    layers = list(range(3))
    everywhere = [range(len(ids)) for ids in PROMPTS]
    found = collect(model, PROMPTS, [Site("resid_post", layer) for layer in layers], everywhere)["resid_post"]
    states = token_states(model, [TokenSequence(ids, [1] * len(ids)) for ids in PROMPTS], [1])
    logit = logit_lens(model, PROMPTS, targets={"a": [3, 4], "b": [7]})
    read = patchscope_lens(model, Latents(LATENTS, layers), PROMPTS, one_each(POSITIONS), GROUPS)
    before = patchscope_lens(
        model, Latents(LATENTS[1:], [1, 2]), PROMPTS, one_each(POSITIONS), GROUPS, site="resid_pre"
    )
    grid = patchscope_grid(model, Latents(LATENTS[[0]], [0]), PROMPTS, one_each(POSITIONS), GROUPS, target_layers=[1])
    texts = patchscope_generate(
        model, Latents(LATENTS, layers), PROMPTS, one_each(POSITIONS), max_new_tokens=4, stop_ids=()
    )
    assert verdicts_of(model)["padding on the left"] is False
    at = 0
    for row, (ids, position) in enumerate(zip(PROMPTS, POSITIONS, strict=True)):
        stream, logits = plain_run(module, ids)
        torch.testing.assert_close(found[:, row, : len(ids)], stream, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states.by_layer[1][at : at + len(ids)], stream[1], atol=1e-5, rtol=1e-5)
        at += len(ids)
        np.testing.assert_allclose(np.exp(logit.log_prob[row, -1]), by_group(logits), atol=1e-6)
        np.testing.assert_allclose(np.exp(read.baseline[row]), by_group(logits), atol=1e-6)  # type: ignore[index]
        for layer in layers:
            written = {layer: (position, LATENTS[layer, row])}
            _, logits = plain_run(module, ids, written)
            np.testing.assert_allclose(np.exp(read.log_prob[row, layer]), by_group(logits), atol=1e-6)
            text = list(ids)
            for _ in range(4):
                text.append(int(plain_run(module, text, written)[1].argmax()))
            assert list(texts.ids[row][layer]) == text[len(ids) :]
        for layer in (1, 2):
            _, logits = plain_run(module, ids, {layer - 1: (position, LATENTS[layer, row])})
            np.testing.assert_allclose(np.exp(before.log_prob[row, layer - 1]), by_group(logits), atol=1e-6)
        _, logits = plain_run(module, ids, {1: (position, LATENTS[0, row])})
        np.testing.assert_allclose(np.exp(grid.log_prob[row, 0, 0]), by_group(logits), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_traces_and_generation_of_several_texts_are_refused_where_they_would_be_padded(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, module = standardized(kind), small_model(KINDS[kind])
    refused = r"ForCausalLM gives other numbers for prompts that are padded on the left.*Trace prompts of one length"
    with caplog.at_level(logging.WARNING, logger="interp"):
        with pytest.raises(InterpError, match=refused):  # noqa: SIM117
            with model.trace(PROMPTS[:2]):
                model.logits.save()
        with pytest.raises(InterpError, match=refused):  # noqa: SIM117
            with model.trace() as tracer:
                with tracer.invoke(PROMPTS[0]):
                    model.logits.save()
                with tracer.invoke(PROMPTS[1]):
                    model.read("resid_post.1").save()
        with pytest.raises(InterpError, match=refused):  # noqa: SIM117
            with model.generate(PROMPTS[:2], max_new_tokens=2) as tracer:
                tracer.result.save()
    assert [record.name for record in caplog.records if "padding" in record.message] == ["interp.model.verdicts"]
    with model.trace([PROMPTS[0], PROMPTS[3]]):  # of one length
        logits = model.logits[:, -1].clone().save()
    for row, ids in enumerate([PROMPTS[0], PROMPTS[3]]):
        torch.testing.assert_close(logits[row], plain_run(module, ids)[1], atol=1e-5, rtol=1e-5)
    with model.trace(PROMPTS[2]):
        logits = model.logits[0, -1].clone().save()
    torch.testing.assert_close(logits, plain_run(module, PROMPTS[2])[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_trial_in_a_trace_leaves_the_trace_alone() -> None:
    """Found out once, in the first trace that pads, with edits, hooks and what is read left out of it."""
    model, ran = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), verify=False), []
    layer = model.layer(1)._module
    handle = layer.register_forward_hook(lambda _, args, __: ran.append(tuple(args[0].shape)))
    with model.edit() as (_, edited):
        edited.write("mlp_out.2", torch.zeros_like(edited.read("mlp_out.2")))
    for _ in range(2):
        with edited.trace(PROMPTS[:3]):
            pattern = edited.read("pattern.0").clone().save()
            hidden = edited.read("resid_post.2").clone().save()
    handle.remove()
    assert ran == [(3, 7, 32)] * 2
    assert verdicts_of(model)["padding on the left"]
    assert tuple(pattern.shape) == (3, 4, 7, 7)
    for row, ids in enumerate(PROMPTS[:3]):
        with edited.trace([ids]):
            alone = edited.read("resid_post.2")[0].clone().save()
        torch.testing.assert_close(hidden[row, -len(ids) :], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_trial_does_not_take_the_mask_of_recurrent_layers_away() -> None:
    model = StandardizedTransformer(build("recurrent_gemma"), tokenizer=tiny_tokenizer(), verify=False)
    with model.trace(PROMPTS[:3]):
        together = model.logits[:, -1].clone().save()
    assert verdicts_of(model)["padding on the left"]
    plain = build("recurrent_gemma")
    for row, ids in enumerate(PROMPTS[:3]):
        expected = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(together[row], expected, atol=1e-4, rtol=1e-4)

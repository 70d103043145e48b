"""Patched generation, attention to another prompt's token and steering, against hooks in plain transformers."""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.compat.nnterp.interventions import TargetPrompt, patch_object_attn_lens, patchscope_generate, steer
from interp.compat.nnterp.nnsight_utils import get_attention_output
from interp.errors import InterpError
from tests.interp.compat.nnterp.models import (
    CLOSE,
    PROMPTS,
    hidden,
    ids_of,
    next_probs,
    standardized,
    wrap,
    writing_token,
)
from tests.interp.reference import PLACES, plain

KINDS = ("standardized", "raw")
TARGET = TargetPrompt("king king\n1135 1135\n?", -1)


@torch.no_grad()
def generated_by_hand(case: str, prompt: str, layer: int, tokens: int) -> Tensor:
    """(length,), one greedy generation with a patched prompt."""
    model: Any = plain(case)
    vector = hidden(case, prompt, f"resid_post.{layer}")[-1]
    with writing_token(case, f"resid_post.{layer}", TARGET.index_to_patch, vector):
        ids: Tensor = model.generate(ids_of(TARGET.prompt), max_new_tokens=tokens, do_sample=False)
    return ids[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [[1], [1, 2], [3, 0], [-1, 1]])
def test_generation_writes_the_latent_of_the_layer_that_is_named(layers: list[int], kind: str) -> None:
    found = patchscope_generate(wrap(kind, "llama"), PROMPTS, TARGET, max_length=4, layers=layers)
    assert list(found) == layers
    for layer in layers:
        assert found[layer].dtype == torch.long and found[layer].device.type == "cpu"
        by_hand = torch.stack([generated_by_hand("llama", prompt, layer % 4, 4) for prompt in PROMPTS])
        assert torch.equal(found[layer], by_hand)


@pytest.mark.parametrize("max_batch_size", [1, 2, 4, 32])
def test_generation_in_batches_of_any_size(max_batch_size: int) -> None:
    model = standardized("llama")
    found = patchscope_generate(model, PROMPTS, TARGET, max_length=3, max_batch_size=max_batch_size)
    assert list(found) == [0, 1, 2, 3]
    for layer, ids in found.items():
        by_hand = torch.stack([generated_by_hand("llama", prompt, layer, 3) for prompt in PROMPTS])
        assert torch.equal(ids, by_hand)


def test_generations_are_different() -> None:
    found = patchscope_generate(standardized("llama"), PROMPTS[0], TARGET, max_length=4)
    assert len({tuple(ids[0].tolist()) for ids in found.values()}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_ended_is_padded(kind: str) -> None:
    """Texts of one batch are equally long, as long as the longest."""
    model = wrap(kind, "mistral")
    free = patchscope_generate(model, PROMPTS, TARGET, max_length=6, layers=[0, 3])
    length = len(ids_of(TARGET.prompt)[0])
    end = int(free[3][0, length + 2])
    config = model._module.generation_config
    before = config.eos_token_id
    config.eos_token_id = [end]
    try:
        found = patchscope_generate(model, PROMPTS, TARGET, max_length=6, layers=[0, 3])
    finally:
        config.eos_token_id = before
    wanted = []
    for row in torch.cat([free[0], free[3]]):
        ends = (row[length:] == end).nonzero().flatten().tolist()
        wanted.append(row[: length + ends[0] + 1] if ends else row)
    assert len({len(row) for row in wanted}) > 1
    padded = torch.nn.utils.rnn.pad_sequence(wanted, batch_first=True, padding_value=0)
    assert torch.equal(torch.cat([found[0], found[3]]), padded)


def test_ours_generates_by_a_walk_where_the_config_is_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = standardized("qwen2")
    module = import_module("interp.compat.nnterp.interventions")
    by_nnsight = module._generate
    calls = []
    monkeypatch.setattr(module, "_generate", lambda *args: calls.append(args) or by_nnsight(*args))
    greedy = patchscope_generate(model, PROMPTS, TARGET, max_length=3, layers=[1])
    assert not calls
    config: Any = model._module.generation_config
    config.do_sample, config.top_k = True, 1  # draws from one token
    try:
        drawn = patchscope_generate(model, PROMPTS, TARGET, max_length=3, layers=[1])
    finally:
        config.do_sample, config.top_k = None, None
    assert calls
    assert torch.equal(drawn[1], greedy[1])


@torch.no_grad()
def attended_by_hand(case: str, sources: list[str], targets: list[str], token: int, num_patches: int) -> Tensor:
    """(target, layer, vocabulary)."""
    rows = []
    for source, target in zip(sources, targets, strict=True):
        read = []
        for first in range(4):
            written = {
                f"attn_in.{i}": (token, hidden(case, source, f"attn_in.{i}")[-1])
                for i in range(first, min(4, first + num_patches))
            }
            read.append(next_probs(case, target, written))
        rows.append(torch.stack(read))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["llama", "gpt_neox", "cohere"])  # in the last two the MLP reads the same tensor
@pytest.mark.parametrize(("token", "num_patches"), [(-2, 5), (1, 1)])
def test_attention_sees_a_sources_last_token(case: str, kind: str, token: int, num_patches: int) -> None:
    targets = ["The lazy dog", "Le chien paresseux saute", "cat -> cat"]
    found = patch_object_attn_lens(wrap(kind, case), PROMPTS, targets, token, num_patches)
    assert found.device.type == "cpu" and not found.requires_grad
    torch.testing.assert_close(found, attended_by_hand(case, PROMPTS, targets, token, num_patches), **CLOSE)


def test_one_source_serves_all_targets() -> None:
    targets = ["The lazy dog", "cat -> cat"]
    found = patch_object_attn_lens(standardized("llama"), PROMPTS[0], targets, -2, 2)
    torch.testing.assert_close(found, attended_by_hand("llama", [PROMPTS[0]] * 2, targets, -2, 2), **CLOSE)


def test_numbers_of_prompts_that_do_not_fit() -> None:
    with pytest.raises(InterpError, match="one source, or one for each of 3 targets, got 2"):
        patch_object_attn_lens(standardized("llama"), PROMPTS[:2], PROMPTS, -1)
    with pytest.raises(InterpError, match="num_patches"):
        patch_object_attn_lens(standardized("llama"), PROMPTS, PROMPTS, -1, 0)


@torch.no_grad()
def steered_by_hand(case: str, layers: list[int], vector: Tensor, factor: float, position: int | None) -> Tensor:
    """Logits (position, vocabulary) of the first prompt."""

    def add(_: object, args: object, output: Any) -> Any:
        value = (output if isinstance(output, Tensor) else output[0]).clone()
        value[:, slice(None) if position is None else position] += factor * vector
        return value if isinstance(output, Tensor) else (value, *output[1:])

    with ExitStack() as stack:
        for layer in layers:
            module = plain(case).get_submodule(PLACES[case].layer.format(i=layer))
            stack.callback(module.register_forward_hook(add).remove)
        return plain(case)(input_ids=ids_of(PROMPTS[0])).logits[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [-1, 1, None])
@torch.no_grad()
def test_steering_at_one_position(kind: str, position: int | None) -> None:
    model = wrap(kind, "gpt2")
    vector = torch.linspace(-1, 1, 32)
    with model.trace(PROMPTS[0]):
        steer(model, [2, 0], vector, 1.5, position)
        logits = model.output.logits[0].clone().save()
    torch.testing.assert_close(logits, steered_by_hand("gpt2", [0, 2], vector, 1.5, position), **CLOSE)


@torch.no_grad()
def test_steering_what_is_read_before_stays() -> None:
    model = standardized("gpt2")
    with model.trace(PROMPTS[0]):
        before = model.layers_output[1].save()
        steer(model, 1, torch.ones(32))
    torch.testing.assert_close(before[0], hidden("gpt2", PROMPTS[0], "resid_post.1"), **CLOSE)


@torch.no_grad()
def test_steering_another_module() -> None:
    model = standardized("gpt2")
    vector = torch.linspace(-1, 1, 32)
    with model.trace(PROMPTS[0]):
        steer(model, 1, vector, position=-1, get_module=get_attention_output)
        logits = model.logits[0, -1].clone().save()
    added = hidden("gpt2", PROMPTS[0], "attn_out.1")[-1] + vector
    by_hand = next_probs("gpt2", PROMPTS[0], {"attn_out.1": (-1, added)})
    torch.testing.assert_close(logits.softmax(-1), by_hand, **CLOSE)

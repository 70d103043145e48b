"""The two lenses against single prompts in plain transformers, read out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.compat.nnterp.interventions import (
    TargetPrompt,
    TargetPromptBatch,
    logit_lens,
    patchscope_lens,
    repeat_prompt,
)
from interp.errors import InterpError
from tests.interp.compat.nnterp.models import CLOSE, PROMPTS, hidden, next_probs, raw, read_out, standardized, wrap

KINDS = ("standardized", "raw")
TARGETS = [
    TargetPrompt("king king\n1135 1135\n?", -1),
    TargetPrompt("The lazy dog jumps", 2),
    TargetPrompt("cat", -2),
]


def lens_by_hand(case: str, sign: int = 1) -> Tensor:
    """(prompt, layer, vocabulary)."""
    rows = []
    for prompt in PROMPTS:
        vectors = torch.stack([hidden(case, prompt, f"resid_post.{layer}")[-1] for layer in range(4)])
        rows.append(read_out(case, vectors, sign).softmax(-1))
    return torch.stack(rows)


def patchscope_by_hand(case: str, layers: list[int], targets: list[TargetPrompt]) -> Tensor:
    """(source, layer, vocabulary), one forward pass each."""
    rows = []
    for prompt, target in zip(PROMPTS, targets, strict=True):
        at = int(target.index_to_patch)
        read = [
            next_probs(case, target.prompt, {f"resid_post.{i}": (at, hidden(case, prompt, f"resid_post.{i}")[-1])})
            for i in layers
        ]
        rows.append(torch.stack(read))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma2", "cohere"])
def test_logit_lens_goes_through_the_models_own_tail(case: str, kind: str) -> None:
    probs = logit_lens(wrap(kind, case), PROMPTS)
    assert isinstance(probs, Tensor) and probs.dtype == torch.float32 and probs.device.type == "cpu"
    assert not probs.requires_grad
    torch.testing.assert_close(probs, lens_by_hand(case), **CLOSE)
    torch.testing.assert_close(probs[:, -1], torch.stack([next_probs(case, prompt) for prompt in PROMPTS]), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["gpt2", "gemma2"])
def test_the_inverse_lens_turns_the_sign_after_the_last_norm(case: str, kind: str) -> None:
    probs, inverse = logit_lens(wrap(kind, case), PROMPTS, return_inv_logits=True)
    torch.testing.assert_close(probs, lens_by_hand(case), **CLOSE)
    torch.testing.assert_close(inverse, lens_by_hand(case, -1), **CLOSE)


def test_one_prompt_and_right_padding() -> None:
    model = raw("llama")
    torch.testing.assert_close(logit_lens(model, PROMPTS[1]), lens_by_hand("llama")[1:2], **CLOSE)
    model.tokenizer.padding_side = "right"
    try:
        probs = logit_lens(model, PROMPTS)
    finally:
        model.tokenizer.padding_side = "left"
    torch.testing.assert_close(probs, lens_by_hand("llama"), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox"])
def test_patchscope_lens_with_a_target_prompt_for_each_source(case: str, kind: str) -> None:
    probs = patchscope_lens(wrap(kind, case), PROMPTS, TARGETS)
    assert probs.device.type == "cpu" and not probs.requires_grad
    torch.testing.assert_close(probs, patchscope_by_hand(case, [0, 1, 2, 3], TARGETS), **CLOSE)


def test_patchscope_lens_takes_layers_in_any_order() -> None:
    probs = patchscope_lens(standardized("gpt2"), PROMPTS, TARGETS, layers=[3, -4, 2])
    torch.testing.assert_close(probs, patchscope_by_hand("gpt2", [3, 0, 2], TARGETS), **CLOSE)


def test_the_default_target_is_the_repeat_prompt_and_one_source_is_enough() -> None:
    probs = patchscope_lens(standardized("llama"), PROMPTS[0], layers=2)
    by_hand = patchscope_by_hand("llama", [2], [repeat_prompt()] * 3)
    torch.testing.assert_close(probs, by_hand[:1], **CLOSE)


@pytest.mark.parametrize("target", ["cat", TargetPrompt("cat", -1), TargetPromptBatch.from_prompts(["cat"] * 3, -1)])
def test_every_way_of_writing_a_target(target: str | TargetPrompt | TargetPromptBatch) -> None:
    probs = patchscope_lens(standardized("llama"), PROMPTS, target, layers=[1])
    torch.testing.assert_close(probs, patchscope_by_hand("llama", [1], [TargetPrompt("cat", -1)] * 3), **CLOSE)


def test_latents_go_to_the_layers_in_their_order() -> None:
    layers = [3, 1]
    latents = torch.stack(
        [torch.stack([hidden("gpt2", prompt, f"resid_post.{layer}")[-1] for prompt in PROMPTS]) for layer in layers]
    )
    probs = patchscope_lens(standardized("gpt2"), None, TARGETS, layers=layers, latents=latents)
    torch.testing.assert_close(probs, patchscope_by_hand("gpt2", layers, TARGETS), **CLOSE)


def test_errors() -> None:
    model = standardized("llama")
    latents = torch.zeros(4, 2, model.hidden_size)
    with pytest.raises(InterpError, match="got none"):
        patchscope_lens(model)
    with pytest.raises(InterpError, match="got both"):
        patchscope_lens(model, PROMPTS, latents=latents)
    with pytest.raises(InterpError, match="one target prompt for each of 3 sources, got 2"):
        patchscope_lens(model, PROMPTS, TARGETS[:2])
    with pytest.raises(InterpError, match="all with the same sources"):
        patchscope_lens(model, latents=[latents[0], latents[0, :1]], layers=[0, 1])
    with pytest.raises(InterpError, match="all with the same sources"):
        patchscope_lens(model, latents=latents[:2])
    with pytest.raises(InterpError, match="none of them is token -9"):
        patchscope_lens(model, PROMPTS[:1], TargetPrompt("cat", -9))

"""Activations of one token of each prompt against single prompts in plain transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor

from interp.compat.nnterp import StandardizedTransformer
from interp.compat.nnterp.interventions import logit_lens, patch_object_attn_lens
from interp.compat.nnterp.nnsight_utils import (
    collect_last_token_activations_session,
    collect_token_activations_batched,
    compute_next_token_probs,
    get_attention,
    get_token_activations,
)
from interp.errors import InterpError
from tests.families.cases import build as build_family
from tests.interp.compat.nnterp.models import CLOSE, PROMPTS, hidden, ids_of, next_probs, raw, standardized, wrap
from tests.interp.reference import build
from tests.made import watching
from tests.tiny import tiny_tokenizer

KINDS = ("standardized", "raw")


def expected(case: str, layers: list[int], token: int = -1, site: str = "resid_post") -> Tensor:
    """(layer, prompt, hidden), each prompt run alone."""
    return torch.stack(
        [torch.stack([hidden(case, prompt, f"{site}.{layer}")[token] for prompt in PROMPTS]) for layer in layers]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_last_tokens_of_a_padded_batch_are_those_of_single_prompts(case: str, kind: str) -> None:
    found = get_token_activations(wrap(kind, case), PROMPTS)
    assert found.device.type == "cpu" and not found.requires_grad
    torch.testing.assert_close(found, expected(case, [0, 1, 2, 3]), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_come_in_the_order_asked_for(kind: str) -> None:
    found = get_token_activations(wrap(kind, "gpt2"), PROMPTS, layers=[3, 0, -2, 0])
    torch.testing.assert_close(found, expected("gpt2", [3, 0, 2, 0]), **CLOSE)


@pytest.mark.parametrize("token", [0, 1, -2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_token_counts_in_each_prompts_own_tokens_on_either_side_of_padding(side: str, token: int) -> None:
    prompts = PROMPTS[:2]
    tokenizer = tiny_tokenizer()
    model: Any = raw("llama")
    model.tokenizer.padding_side = side
    try:
        found = get_token_activations(model, prompts, idx=token)
    finally:
        model.tokenizer.padding_side = "left"
    lengths = [len(tokenizer(prompt).input_ids) for prompt in prompts]
    assert lengths[0] != lengths[1]
    torch.testing.assert_close(found, expected("llama", [0, 1, 2, 3], token)[:, :2], **CLOSE)


def test_a_token_that_a_prompt_does_not_have_is_refused() -> None:
    length = ids_of("king").shape[1]
    with pytest.raises(InterpError, match=f"prompt 2 has {length} tokens, none of them is token 4"):
        get_token_activations(standardized("llama"), PROMPTS, idx=4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_in_an_open_trace_earlier_places_than_layer_0s_output_can_be_read(kind: str) -> None:
    model = wrap(kind, "gpt_neox")
    with model.trace(PROMPTS) as tracer:
        found = get_token_activations(
            model, PROMPTS, tracer=tracer, get_activations=lambda m, layer: get_attention(m, layer).input
        ).save()
        logits = model.output.logits[:, -1].clone().save()  # the trace goes on
    torch.testing.assert_close(found, expected("gpt_neox", [0, 1, 2, 3], site="attn_in"), **CLOSE)
    torch.testing.assert_close(
        logits.softmax(-1), torch.stack([next_probs("gpt_neox", prompt) for prompt in PROMPTS]), **CLOSE
    )


def test_an_open_trace_keeps_its_gradients() -> None:
    model = standardized("llama")
    with model.trace(PROMPTS) as tracer:
        get_token_activations(model, tracer=tracer, layers=[0])
        later = model.layers_output[2].save()
    assert later.requires_grad


def test_what_is_read_does_not_change_with_the_model() -> None:
    model = standardized("llama")
    with torch.no_grad(), model.trace(PROMPTS) as tracer:
        found = get_token_activations(model, tracer=tracer, layers=[1]).save()
        model.layers_output[1][:] = 0
    torch.testing.assert_close(found, expected("llama", [1]), **CLOSE)


def test_what_a_layer_changes_in_place_afterwards_is_kept_as_it_was() -> None:
    """Falcon adds attention's output to the MLP's, in place."""
    module: Any = build_family("falcon")
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
    kept: list[Tensor] = []
    handle = module.transformer.h[0].mlp.register_forward_hook(lambda _, args, output: kept.append(output.clone()))
    with torch.no_grad():
        module(input_ids=ids_of(PROMPTS[0]))
    handle.remove()
    found = get_token_activations(
        model, PROMPTS[:1], layers=[0, 1], get_activations=lambda m, layer: m.mlps_output[layer]
    )
    torch.testing.assert_close(found[0], kept[0][:, -1], **CLOSE)


def test_no_graph_is_built() -> None:
    module: Any = build("llama")
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
    graphs: list[bool] = []
    module.model.norm.register_forward_hook(watching(lambda _, args, output: graphs.append(output.requires_grad)))
    compute_next_token_probs(model, PROMPTS)
    patch_object_attn_lens(model, PROMPTS[0], PROMPTS, -1, 1)
    assert len(graphs) == 3 and not any(graphs)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_sessions_give_what_one_batch_gives(kind: str) -> None:
    model = wrap(kind, "gpt2")
    whole = expected("gpt2", [3, 1])
    seen: list[int] = []

    def progress(batches: Any) -> Any:
        for start in batches:
            seen.append(start)
            yield start

    batched = collect_token_activations_batched(model, PROMPTS, 2, layers=[3, 1], tqdm=progress)
    session = collect_last_token_activations_session(model, PROMPTS, 2, layers=[3, 1])
    assert seen == [0, 2]
    torch.testing.assert_close(batched, whole, **CLOSE)
    torch.testing.assert_close(session, whole, **CLOSE)


def test_a_session_takes_another_place_and_token() -> None:
    model = standardized("gpt2")
    arguments: dict[str, Any] = dict(layers=[1], get_activations=lambda m, layer: m.attentions_input[layer], idx=0)
    whole = expected("gpt2", [1], 0, "attn_in")
    torch.testing.assert_close(collect_last_token_activations_session(model, PROMPTS, 2, **arguments), whole, **CLOSE)
    torch.testing.assert_close(collect_token_activations_batched(model, PROMPTS, 2, **arguments), whole, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_next_token_probabilities_of_a_padded_batch(kind: str, side: str) -> None:
    model = wrap(kind, "gemma2")
    model.tokenizer.padding_side = side
    try:
        probs = compute_next_token_probs(model, PROMPTS)
    finally:
        model.tokenizer.padding_side = "left"
    assert probs.device.type == "cpu" and not probs.requires_grad
    torch.testing.assert_close(probs, torch.stack([next_probs("gemma2", prompt) for prompt in PROMPTS]), **CLOSE)


def test_half_precision_gives_activations_in_it_and_probabilities_in_float32() -> None:
    module = build("llama").to(torch.bfloat16)
    model = TransformersModel(module, tokenizer=tiny_tokenizer(), task="text-generation")
    assert get_token_activations(model, PROMPTS).dtype == torch.bfloat16
    probs = compute_next_token_probs(model, PROMPTS[:1])
    with torch.no_grad():
        logits = module(input_ids=ids_of(PROMPTS[0])).logits[:, -1]
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs, logits.float().softmax(-1))


def test_errors() -> None:
    model = standardized("llama")
    with pytest.raises(InterpError, match="expected prompts"):
        get_token_activations(model)
    with pytest.raises(InterpError, match="expected at least one, got none"):
        get_token_activations(model, PROMPTS, layers=[])
    with pytest.raises(InterpError, match="layer 4 is out of range"):
        get_token_activations(model, PROMPTS, layers=[4])
    with pytest.raises(InterpError, match="batch_size"):
        collect_token_activations_batched(model, PROMPTS, 0)
    with pytest.raises(InterpError, match="expected a list"):
        collect_token_activations_batched(model, "one prompt", 2)


def test_prompts_as_encodings_and_columns() -> None:
    """In batches too: an encoding has as many entries as keys, and is no list of prompts as it is."""
    model = standardized("llama")
    texts = ["The quick brown fox", "cat", "The lazy dog jumps over"]
    tokenizer = model.tokenizer
    encoding = tokenizer(texts, padding=True, return_tensors="pt")
    wanted = get_token_activations(model, texts)
    for given in (encoding, dict(encoding), pd.Series(texts), np.array(texts)):
        torch.testing.assert_close(get_token_activations(model, given), wanted)
        for collect in (collect_token_activations_batched, collect_last_token_activations_session):
            torch.testing.assert_close(collect(model, given, batch_size=2), wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logit_lens(model, given), logit_lens(model, texts), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        patch_object_attn_lens(model, encoding, encoding, -1), patch_object_attn_lens(model, texts, texts, -1)
    )
    calls = compute_next_token_probs, logit_lens, lambda model, given: patch_object_attn_lens(model, given, texts, -1)
    for wrong in ({"a": "cat"}, pd.DataFrame({"text": texts}), set(texts), None, 5):
        for call in calls:
            with pytest.raises(InterpError, match="prompts: expected texts, Prompts or lists of token ids"):
                call(model, wrong)
        with pytest.raises(InterpError, match="prompts: expected texts, Prompts or lists of token ids"):
            collect_token_activations_batched(model, wrong, batch_size=2)


@pytest.mark.parametrize("column", [np.array, pd.Series, lambda texts: pd.Series(texts, index=[7, 1, 4])])
def test_arrays_and_columns_of_tables_are_lists_of_prompts(column: Any) -> None:
    model, prompts = standardized("gpt2"), column(PROMPTS)
    whole = expected("gpt2", [0, 1, 2, 3])
    torch.testing.assert_close(get_token_activations(model, prompts), whole, **CLOSE)
    for collect in (collect_token_activations_batched, collect_last_token_activations_session):
        torch.testing.assert_close(collect(model, prompts, 2), whole, **CLOSE)
    probabilities = torch.stack([next_probs("gpt2", prompt) for prompt in PROMPTS])
    torch.testing.assert_close(compute_next_token_probs(model, prompts), probabilities, **CLOSE)
    torch.testing.assert_close(logit_lens(model, prompts)[:, -1], probabilities, **CLOSE)  # type: ignore[index]

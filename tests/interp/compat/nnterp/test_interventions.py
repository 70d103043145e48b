"""Lenses, patched generation, attention to another prompt's token and steering, against plain transformers."""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.compat.nnterp.interventions import (
    TargetPrompt,
    TargetPromptBatch,
    logit_lens,
    patch_object_attn_lens,
    patchscope_generate,
    patchscope_lens,
    repeat_prompt,
    steer,
)
from interp.compat.nnterp.nnsight_utils import get_attention_output
from interp.compat.nnterp.plans import prompt_ids
from interp.errors import InterpError
from tests.interp.compat.nnterp.models import (
    CLOSE,
    PROMPTS,
    hidden,
    ids_of,
    next_probs,
    raw,
    read_out,
    standardized,
    wrap,
    writing_token,
)
from tests.interp.reference import PLACES, plain
from tests.made import TensorsMade

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


@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "cohere", "mixtral", "phi3"])
def test_logit_lens_of_our_models_is_nnterps_one_batch(case: str) -> None:
    """Both signs, ragged prompts, one of them twice: what one padded trace of all of them gives, tensor by tensor."""
    prompts = [*PROMPTS, "The quick brown fox jumps over the lazy dog " * 3, PROMPTS[0]]
    ours = logit_lens(standardized(case), prompts, return_inv_logits=True)
    theirs = logit_lens(raw(case), prompts, return_inv_logits=True)
    for found, wanted in zip(ours, theirs, strict=True):
        assert (found.shape, found.dtype, found.device) == (wanted.shape, wanted.dtype, wanted.device)
        assert found.is_contiguous() and not found.requires_grad
        torch.testing.assert_close(found, wanted, **CLOSE)


def every_spelling(model: Any) -> dict[str, Any]:
    """The prompts in each way in which nnsight takes them, but for texts."""
    encoded = model.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    ids = [ids_of(prompt)[0].tolist() for prompt in PROMPTS]
    return {"encoding": encoded, "ids": ids, "dictionary": {"input_ids": ids}}


@pytest.mark.parametrize("spelling", ["encoding", "ids", "dictionary"])
def test_prompts_in_every_spelling_run_on_our_own_code(spelling: str) -> None:
    model = standardized("gpt2")
    prompts = every_spelling(model)[spelling]
    assert prompt_ids(model, prompts) == [ids_of(prompt)[0].tolist() for prompt in PROMPTS]
    torch.testing.assert_close(logit_lens(model, prompts), lens_by_hand("gpt2"), **CLOSE)


def test_one_row_of_ids_is_one_prompt() -> None:
    model, ids = standardized("llama"), ids_of(PROMPTS[0])
    for prompts in (ids, ids[0], ids[0].tolist(), PROMPTS[0]):
        torch.testing.assert_close(logit_lens(model, prompts), lens_by_hand("llama")[:1], **CLOSE)


def test_what_is_more_than_token_ids_is_traced() -> None:
    """Embeddings, masks with gaps, other positions: what a forward pass over them says, at the last token."""
    model: Any = standardized("gpt2")
    ids = ids_of(PROMPTS[0])
    gap, later = torch.ones_like(ids), torch.arange(ids.shape[1])[None] + 3
    gap[0, 1] = 0
    embeddings = plain("gpt2").get_input_embeddings()(ids).detach()
    for given in (
        {"input_ids": ids, "attention_mask": gap},
        {"input_ids": ids, "position_ids": later},
        {"inputs_embeds": embeddings},
    ):
        assert prompt_ids(model, given) is None
        with torch.no_grad():
            wanted = plain("gpt2")(**given).logits[:, -1].softmax(-1)
        torch.testing.assert_close(logit_lens(model, given)[:, -1], wanted, **CLOSE)


@pytest.mark.parametrize("lens", ["logit", "patchscope", "attention"])
def test_edits_of_the_model_count(lens: str) -> None:
    """nnsight's `edit` is part of every trace; what calls single layers must not pass it by."""

    def said(model: Any) -> Tensor:
        if lens == "logit":
            return logit_lens(model, PROMPTS)
        if lens == "patchscope":
            return patchscope_lens(model, PROMPTS, TARGETS)
        return patch_object_attn_lens(model, PROMPTS, [target.prompt for target in TARGETS], attn_idx_patch=-1)

    models: list[Any] = []
    for kind in KINDS:
        model: Any = wrap(kind, "llama")
        with torch.no_grad(), model.edit() as (_, edited):
            edited.model.layers[2].output *= 1.5
        models.append(edited)
    plainly, wanted = said(standardized("llama")), said(models[1])
    assert (plainly - wanted).abs().max() > 1e-3
    torch.testing.assert_close(said(models[0]), wanted, **CLOSE)
    torch.testing.assert_close(said(standardized("llama")), plainly)  # and only those of the model at hand


def test_nothing_larger_than_the_result_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the result a few rows of logits are held; the head never sees whole prompts, nor all of their ends."""
    monkeypatch.setattr("interp.readout.reduce.how_many", lambda *_: 2)
    model = standardized("llama")
    probs = logit_lens(model, PROMPTS)  # what is found out about the model once is found out
    with TensorsMade() as made:
        logit_lens(model, PROMPTS)
    sizes = sorted(shape.numel() for shape in made.shapes if shape[-1:] == (model.vocab_size,))
    assert sizes[-1] == probs.numel() == made.largest
    assert sizes[-2] == 2 * model.vocab_size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox"])
def test_patchscope_lens_with_a_target_prompt_for_each_source(case: str, kind: str) -> None:
    probs = patchscope_lens(wrap(kind, case), PROMPTS, TARGETS)
    assert probs.device.type == "cpu" and not probs.requires_grad
    torch.testing.assert_close(probs, patchscope_by_hand(case, [0, 1, 2, 3], TARGETS), **CLOSE)


def test_patchscope_lens_takes_layers_in_any_order() -> None:
    probs = patchscope_lens(standardized("gpt2"), PROMPTS, TARGETS, layers=[3, -4, 2])
    torch.testing.assert_close(probs, patchscope_by_hand("gpt2", [3, 0, 2], TARGETS), **CLOSE)


def test_a_layer_that_is_named_twice_is_written_with_each_of_its_latents() -> None:
    model, target = standardized("llama"), TARGETS[0]
    latents = torch.stack([hidden("llama", prompt, "resid_post.1")[-1:] for prompt in PROMPTS[:2]])
    found = patchscope_lens(model, None, target, layers=[1, 1], latents=latents)
    rows = [next_probs("llama", target.prompt, {"resid_post.1": (-1, latent[0])}) for latent in latents]
    torch.testing.assert_close(found[0], torch.stack(rows), **CLOSE)
    assert (rows[0] - rows[1]).abs().max() > 1e-4


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

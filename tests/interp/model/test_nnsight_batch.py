"""Several prompts in one forward pass (invokes), and changes that stay (edits), against torch hooks."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.errors import InterpError
from tests.families.cases import build
from tests.interp.model.plain import (
    IDS,
    MLP_ADDED,
    NUM_LAYERS,
    OTHER,
    PROMPT,
    changing,
    encoded,
    families,
    layers,
    plain,
    positioned,
    residuals,
    wrapped,
)
from tests.tiny import tiny_tokenizer

# Invokes --------------------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_each_invoke_sees_its_rows_of_one_padded_batch(family: str) -> None:
    model = wrapped(family)
    short: dict[str, Tensor] = {}
    both: dict[str, Tensor] = {}
    with model.trace() as tracer:
        with tracer.invoke(PROMPT):
            long = model.layers_output[1].clone().save()
        with tracer.invoke([OTHER, "king"]):
            short["ids"] = model.input_ids.clone()
            short["attn_out"] = model.read("attn_out.1").clone()
            short["mlp_out"] = model.read("mlp_out.1").clone()
            short["layer"] = model.layers_output[1].clone()
            short["logits"] = model.logits.clone()
            short["probabilities"] = model.next_token_probs.clone()
        with tracer.invoke():
            both["layer"] = model.read("resid_post.1").clone()
    batch = positioned(family, encoded(PROMPT, OTHER, "king"))
    expected, logits = residuals(family, **batch)
    torch.testing.assert_close(long, expected[1][:1])
    torch.testing.assert_close(both["layer"], expected[1])
    torch.testing.assert_close(short["layer"], expected[1][1:])
    torch.testing.assert_close(short["logits"], logits[1:])
    torch.testing.assert_close(short["probabilities"], logits[1:, -1].softmax(-1))
    assert torch.equal(short["ids"], batch["input_ids"][1:])
    torch.testing.assert_close(expected[0][1:] + short["attn_out"] + short["mlp_out"], short["layer"])
    alone = residuals(family, **encoded(OTHER))[0][1]
    length = alone.shape[1]
    torch.testing.assert_close(short["layer"][:1, -length:], alone, atol=1e-5, rtol=1e-5)


@families
@torch.no_grad()
def test_a_change_in_one_invoke_leaves_the_others(family: str) -> None:
    model = wrapped(family)
    logits: dict[str, Tensor] = {}
    with model.trace() as tracer:
        with tracer.invoke(PROMPT):
            logits["clean"] = model.logits.clone()
        with tracer.invoke(PROMPT):
            model.layers_output[1] = model.layers_output[1] * 0
            logits["set"] = model.logits.clone()
        with tracer.invoke(PROMPT):
            model.read("mlp_out.2")[:] = 0
            logits["in place"] = model.logits.clone()
        with tracer.invoke(PROMPT):
            model.steer(1, torch.ones(32), factor=2.0, token_positions=-1)
            logits["steered"] = model.logits.clone()
    batch = encoded(PROMPT)
    torch.testing.assert_close(logits["clean"], residuals(family, **batch)[1])
    with changing(layers(family)[1], lambda hidden, _: hidden * 0):
        torch.testing.assert_close(logits["set"], residuals(family, **batch)[1])
    with changing(layers(family)[2].get_submodule(MLP_ADDED[family]), lambda hidden, _: hidden * 0):
        torch.testing.assert_close(logits["in place"], residuals(family, **batch)[1])

    def steer(hidden: Tensor, _: int) -> Tensor:
        hidden = hidden.clone()
        hidden[:, -1] += 2.0
        return hidden

    with changing(layers(family)[1], steer):
        torch.testing.assert_close(logits["steered"], residuals(family, **batch)[1])


@families
@torch.no_grad()
def test_a_barrier_carries_a_value_from_one_invoke_to_another(family: str) -> None:
    model = wrapped(family)
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(PROMPT):
            source = model.layers_output[2][:, -1].clone()
            barrier()
        with tracer.invoke(OTHER):
            barrier()
            model.layers_output[2][:, -1] = source
            patched = model.logits[:, -1].save()
    source = residuals(family, **encoded(PROMPT))[0][2][:, -1]

    def patch(hidden: Tensor, _: int) -> Tensor:
        hidden = hidden.clone()
        hidden[:, -1] = source
        return hidden

    with changing(layers(family)[2], patch):
        expected = residuals(family, **encoded(OTHER))[1][:, -1]
    torch.testing.assert_close(patched, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_a_barrier_the_value_is_not_there() -> None:
    model = wrapped("llama")
    with pytest.raises(NameError, match="source"), model.trace() as tracer:
        with tracer.invoke(PROMPT):
            source = model.layers_output[2][:, -1].clone()
        with tracer.invoke(OTHER):
            model.layers_output[2][:, -1] = source
    assert torch.equal(model.trace(IDS, trace=False).logits, residuals("llama", input_ids=IDS)[1])


@families
@torch.no_grad()
def test_invokes_with_keywords_and_skipped_layers(family: str) -> None:
    model = wrapped(family)
    logits = []
    with model.trace() as tracer:
        with tracer.invoke(input_ids=IDS[:1]):
            model.skip_layers(1, 2)
            logits.append(model.logits.clone())
        with tracer.invoke(input_ids=IDS[1:]):
            model.skip_layers(1, 2)
            logits.append(model.logits.clone())
    first = residuals(family, input_ids=IDS)[0][0]
    with changing(layers(family)[2], lambda *_: first):
        torch.testing.assert_close(torch.cat(logits), residuals(family, input_ids=IDS)[1])


@torch.no_grad()
def test_an_error_in_an_invoke_is_the_users_own() -> None:
    model = wrapped("gpt2")
    with pytest.raises(InterpError, match="Did you mean"), model.trace() as tracer:
        with tracer.invoke(PROMPT):
            model.read("resid_pst.1")
        with tracer.invoke(OTHER):
            model.read("resid_post.1")
    assert torch.equal(model.trace(IDS, trace=False).logits, residuals("gpt2", input_ids=IDS)[1])


# Edits ----------------------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_an_edited_copy_leaves_the_model_alone(family: str) -> None:
    model = wrapped(family)
    with model.edit() as (_, edited):
        edited.layers_output[1] = edited.layers_output[1] * 2
        edited.write("mlp_out.3", torch.zeros_like(edited.read("mlp_out.3")))
    assert isinstance(edited, StandardizedTransformer)
    with edited.trace(IDS):
        hidden = edited.read("resid_post.1").clone().save()
        changed = edited.logits.save()
    with model.trace(IDS):
        clean = model.logits.save()
    with (
        changing(layers(family)[1], lambda hidden, _: hidden * 2),
        changing(layers(family)[3].get_submodule(MLP_ADDED[family]), lambda value, _: value * 0),
    ):
        expected = residuals(family, input_ids=IDS)[1]
    before, logits = residuals(family, input_ids=IDS)
    torch.testing.assert_close(changed, expected)
    torch.testing.assert_close(hidden, 2 * before[1])
    assert torch.equal(clean, logits)


@families
@torch.no_grad()
def test_an_edit_in_place_stays_until_it_is_cleared(family: str) -> None:
    model = wrapped(family)
    with model.edit(inplace=True):
        model.layers_output[1] = model.layers_output[1] * 2
    try:
        direct = model.trace(IDS, trace=False).logits
        with model.trace() as tracer:
            with tracer.invoke(IDS[:1]):
                first = model.logits.clone().save()
            with tracer.invoke(IDS[1:]):
                second = model.logits.clone().save()
    finally:
        model.clear_edits()
    with changing(layers(family)[1], lambda hidden, _: hidden * 2):
        expected = residuals(family, input_ids=IDS)[1]
    torch.testing.assert_close(direct, expected)
    torch.testing.assert_close(torch.cat([first, second]), expected)
    assert torch.equal(model.trace(IDS, trace=False).logits, residuals(family, input_ids=IDS)[1])


STEPS = 3


def greedy(family: str) -> Tensor:
    """Token ids that the plain model generates after IDS."""
    return plain(family).generate(
        IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False
    )


@pytest.mark.parametrize("every_step", [True, False])
@families
@torch.no_grad()
def test_an_edit_under_generate(family: str, every_step: bool) -> None:
    """An edit is made the first time a layer runs; in a loop over the tracer's steps, at every step."""
    model = wrapped(family)
    if every_step:
        with model.edit(inplace=True) as tracer:
            for _ in tracer.iter[:]:
                model.layers_output[2] = -model.layers_output[2]
    else:
        with model.edit(inplace=True):
            model.layers_output[2] = -model.layers_output[2]
    try:
        warned = pytest.warns(UserWarning, match="never reached") if every_step else nullcontext()
        with warned, model.generate(IDS, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False) as tracer:
            ids = tracer.result.save()
    finally:
        model.clear_edits()
    with changing(layers(family)[2], lambda hidden, call: -hidden if every_step or call == 0 else hidden):
        expected = greedy(family)
    assert torch.equal(ids, expected)
    assert not torch.equal(ids, greedy(family))


# New modules ----------------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_a_new_module_in_an_edit(family: str) -> None:
    torch.manual_seed(1)
    adapter = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 32))
    model = StandardizedTransformer(build(family), tokenizer=tiny_tokenizer(), verify=False)
    model.layers[1].adapter = adapter
    with model.edit() as (_, edited):
        edited.layers_output[1] = edited.layers[1].adapter(edited.layers_output[1], hook=True)
    with edited.trace(IDS):
        inner = edited.layers[1].adapter[0].output.clone().save()
        logits = edited.logits.save()
    before = residuals(family, input_ids=IDS)[0][1]
    with changing(layers(family)[1], lambda hidden, _: adapter(hidden)):
        expected = residuals(family, input_ids=IDS)[1]
    torch.testing.assert_close(inner, adapter[0](before))
    torch.testing.assert_close(logits, expected)
    assert len(model.layers) == NUM_LAYERS
    torch.testing.assert_close(model.trace(IDS, trace=False).logits, residuals(family, input_ids=IDS)[1])

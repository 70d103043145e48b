"""Where nnsight lets one go wrong without a word, and what is done about it here."""

from __future__ import annotations

import nnsight
import pytest
import torch
from torch import Tensor

from interp.errors import InterpError
from tests.interp.model.plain import IDS, OTHER, PROMPT, encoded, families, plain, residuals, seeing, wrapped
from tests.interp.model.plain import layers as plain_layers

GREEDY = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)

# Order ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [slice(0, 2), slice(1, 3), slice(2, 3)])
@torch.no_grad()
def test_a_place_that_was_passed_is_refused_at_every_step(steps: slice) -> None:
    """nnsight alone gives the next step's value from the second step on."""
    model = wrapped("llama")
    refused = pytest.raises(InterpError, match=r"resid_post\.0: the forward pass is past it.*in_order")
    with refused, model.generate(IDS, **GREEDY) as tracer:
        for _ in tracer.iter[steps]:
            model.read("resid_post.2").clone()
            model.read("resid_post.0").clone()
    assert torch.equal(model.trace(IDS, trace=False).logits, residuals("llama", input_ids=IDS)[1])


@pytest.mark.parametrize("second", ["read", "write", "accessor", "set", "embeddings", "input_ids"])
@families
@torch.no_grad()
def test_what_is_refused(family: str, second: str) -> None:
    model = wrapped(family)
    with pytest.raises(InterpError, match="the forward pass is past it"), model.generate(IDS, **GREEDY) as tracer:
        for _ in tracer.iter[1:3]:
            hidden = model.layers_output[2].clone()
            if second == "read":
                model.read("mlp_out.1")
            elif second == "write":
                model.write("attn_out.2", hidden)
            elif second == "accessor":
                _ = model.layers_input[1]
            elif second == "set":
                model.layers_output[0] = hidden
            elif second == "embeddings":
                _ = model.token_embeddings
            else:
                _ = model.input_ids


@pytest.mark.parametrize(
    ("first", "second"),
    [("pattern.2", "pattern.1"), ("pattern.1", "q.1"), ("z.2", "pattern.1"), ("scores.2", "z.1"), ("z.1", "attn_in.1")],
)
@pytest.mark.parametrize("write", [False, True])
@families
@torch.no_grad()
def test_what_is_refused_of_attention(family: str, write: bool, first: str, second: str) -> None:
    model = wrapped(family)
    with pytest.raises(InterpError, match="the forward pass is past it"), model.generate(IDS, **GREEDY) as tracer:
        for _ in tracer.iter[1:3]:
            value = model.read(first).clone()
            if write:
                model.write(second, value)
            else:
                model.read(second)


@families
@torch.no_grad()
def test_the_right_order_goes_on_working_at_every_step(family: str) -> None:
    model = wrapped(family)
    asked = model.in_order(["resid_post.2", "mlp_out.1", "embed", "z.1", "pattern.1", "q.1", "resid_post.1", "logits"])
    values: list[dict[str, Tensor]] = []
    with model.generate(IDS, **GREEDY) as tracer:
        for _ in tracer.iter[1:4]:
            step: dict[str, Tensor] = {}
            for site in asked:
                step[str(site)] = model.read(site).clone()
                again = model.read(site)  # at the same visit, as often as one likes
                assert torch.equal(again, step[str(site)])
            values.append(step)
    with seeing({"1": plain_layers(family)[1], "2": plain_layers(family)[2]}) as seen:
        plain(family).generate(IDS, attention_mask=torch.ones_like(IDS), **GREEDY)
    for number, step in enumerate(values, start=1):
        torch.testing.assert_close(step["resid_post.1"], seen["1"][number])
        torch.testing.assert_close(step["resid_post.2"], seen["2"][number])


# Keywords -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_keyword_that_nothing_takes_is_refused() -> None:
    """transformers' models swallow it."""
    model = wrapped("llama")
    mask = torch.ones_like(IDS)
    for keywords in ({"attention_msk": mask}, {"scan": True}, {"invoker_args": {}}):
        (name,) = keywords
        refused = pytest.raises(InterpError, match=rf"LlamaForCausalLM takes no keyword '{name}'")
        with refused, model.trace(IDS, **keywords):
            model.logits.save()
        with pytest.raises(InterpError, match=f"takes no keyword '{name}'"):
            model.trace(PROMPT, trace=False, **keywords)
    with pytest.raises(InterpError, match="Did you mean 'attention_mask'"), model.trace() as tracer:
        logits: list[Tensor] = []
        with tracer.invoke(input_ids=IDS, attention_msk=mask):
            logits.append(model.logits)
    with model.trace(IDS, attention_mask=mask, use_cache=False, output_hidden_states=True, logits_to_keep=1) as tracer:
        output = tracer.result.save()
    hidden, logits = residuals("llama", input_ids=IDS)
    torch.testing.assert_close(output.logits, logits[:, -1:])
    assert torch.equal(output.hidden_states[1], hidden[0])
    long = "The quick brown fox jumps over the lazy dog"
    with model.trace(long, truncation=True, max_length=4):
        size = nnsight.save(model.input_size)
    assert size == (1, 4), "the tokenizer's own keywords pass"


# What is saved --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_saved_value_shows_what_is_done_to_it_in_place_and_a_clone_does_not() -> None:
    model = wrapped("llama")
    with model.trace(IDS):
        live = model.layers_output[1].save()
        copy = model.layers_output[1].clone().save()
        model.layers_output[1][:] = 0
    assert not live.any()
    assert torch.equal(copy, residuals("llama", input_ids=IDS)[0][1])


@torch.no_grad()
def test_what_steers_and_writes_leaves_what_was_read_before() -> None:
    model = wrapped("gpt2")
    with model.trace(IDS):
        before = model.read("resid_post.1").save()
        model.steer(1, torch.ones(32))
        between = model.read("resid_post.1").save()
        model.write("resid_post.1", torch.zeros_like(between))
        after = model.read("resid_post.1").save()
    expected = residuals("gpt2", input_ids=IDS)[0][1]
    assert torch.equal(before, expected)
    assert torch.equal(between, expected + 1)
    assert not after.any()


# Gradients ------------------------------------------------------------------------------------------------------------


def test_nothing_of_ours_turns_gradients_off_in_the_model() -> None:
    """`torch.no_grad()` within a trace would: it is on while the body waits for the model."""
    model = wrapped("llama")
    with model.trace(PROMPT):
        early = model.layers_output[0]
        model.readout(early)
        model.get_topk_closest_tokens(early[0, -1])
        model.read("pattern.1")
        model.read("head_out.1")
        model.steer(1, torch.ones(32), factor=0.0)
        model.skip_layer(2)
        assert torch.is_grad_enabled()
        loss = model.logits[:, -1, 0].sum()
        with loss.backward():
            gradient = early.grad.save()
    model._module.zero_grad(set_to_none=True)
    assert gradient.any()
    outputs = []
    watch = plain_layers("llama")[0].register_forward_hook(lambda _module, _args, output: outputs.append(output))
    skip = plain_layers("llama")[2].register_forward_hook(lambda _module, args, _output: args[0])
    logits = plain("llama")(**encoded(PROMPT)).logits
    watch.remove()
    skip.remove()
    (expected,) = torch.autograd.grad(logits[:, -1, 0].sum(), outputs)
    torch.testing.assert_close(gradient, expected)


# Padding --------------------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_negative_positions_are_the_same_tokens_in_every_batch(family: str) -> None:
    """Batches are padded on the left, so a position that is counted from the start depends on the other prompts."""
    model = wrapped(family)
    with model.trace([PROMPT, OTHER]):
        tokens = model.input_ids.save()
        together = model.layers_output[2][:, -1].clone().save()
        first = model.layers_output[2][1, 0].clone().save()
    with model.trace(OTHER):
        alone = model.layers_output[2][0].clone().save()
    torch.testing.assert_close(together[1], alone[-1], atol=1e-5, rtol=1e-5)
    assert tokens[1, 0] == model.tokenizer.pad_token_id
    assert not torch.allclose(first, alone[0], atol=1e-2)


@torch.no_grad()
def test_a_pass_in_training_mode_is_not_possible_by_accident() -> None:
    """Dropout: GPT-2's is 0.1. A trace leaves `module.training` alone; loading and wrapping set `eval`."""
    model = wrapped("gpt2")
    assert not model._module.training
    assert torch.equal(model.trace(IDS, trace=False).logits, model.trace(IDS, trace=False).logits)

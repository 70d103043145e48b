"""Reading, writing, saving, skipping, stopping, caching and drilling inside one trace, against torch hooks."""

from __future__ import annotations

from typing import Any

import nnsight
import pytest
import torch
from torch import Tensor

from interp.errors import InterpError
from tests.interp.model.plain import (
    ATTENTIONS,
    IDS,
    LAYERS,
    NUM_LAYERS,
    PROMPT,
    changing,
    encoded,
    families,
    head,
    layers,
    plain,
    positioned,
    residuals,
    wrapped,
)

# Reading and writing --------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_the_models_own_names_stay(family: str) -> None:
    model = wrapped(family)
    with model.trace(IDS):
        own = model.get(LAYERS[family])[1].output.save()
        standard = model.layers[1].output.save()
        logits = model.output.logits.save()
    expected, expected_logits = residuals(family, input_ids=IDS)
    assert isinstance(own, tuple) == (family == "bloom"), "nnsight's output is what the module returns"
    assert own is standard
    assert torch.equal(own[0] if family == "bloom" else own, expected[1])
    assert torch.equal(logits, expected_logits)


WAYS = ("set by accessor", "set by site", "in place by accessor", "in place by site", "set by nnsight")


@families
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_a_change_reaches_the_logits(family: str, way: str) -> None:
    model = wrapped(family)
    with model.trace(IDS):
        if way == "set by accessor":
            model.layers_output[1] = model.layers_output[1] * 2 + 1
        elif way == "set by site":
            model.write("resid_post.1", model.read("resid_post.1") * 2 + 1)
        elif way == "in place by accessor":
            model.layers_output[1][:] = model.layers_output[1] * 2 + 1
        elif way == "in place by site":
            model.read("resid_post.1").mul_(2).add_(1)
        else:
            output = model.layers[1].output
            if isinstance(output, tuple):
                model.layers[1].output = (output[0] * 2 + 1, *output[1:])
            else:
                model.layers[1].output = output * 2 + 1
        logits = model.logits.save()
    with changing(layers(family)[1], lambda hidden, _: hidden * 2 + 1):
        expected = residuals(family, input_ids=IDS)[1]
    torch.testing.assert_close(logits, expected)
    assert not torch.equal(logits, residuals(family, input_ids=IDS)[1])


@families
@torch.no_grad()
def test_a_part_of_a_value_is_changed_in_place(family: str) -> None:
    model = wrapped(family)
    with model.trace(IDS):
        model.read("attn_out.2")[0, -1] = 0
        model.layers_input[3][1, 2] += 1
        after = model.read("resid_pre.3").clone().save()
        logits = model.logits.save()

    def attention(added: Tensor, _: int) -> Tensor:
        added[0, -1] = 0
        return added

    def layer(hidden: Tensor, _: int) -> Tensor:
        hidden = hidden.clone()
        hidden[1, 2] += 1
        return hidden

    # Bloom adds the residual stream within the attention module, to what the projection in it gives.
    added = {"gemma2": "post_attention_layernorm", "bloom": "self_attention.dense"}.get(family, ATTENTIONS[family])
    changed = layers(family)[2].get_submodule(added)
    with changing(changed, attention), changing(layers(family)[2], layer):
        expected, expected_logits = residuals(family, input_ids=IDS)
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(after, expected[2])


@torch.no_grad()
def test_values_are_real_tensors() -> None:
    model = wrapped("llama")
    expected = residuals("llama", input_ids=IDS)[0]
    seen = []
    with model.trace(IDS):
        hidden = model.layers_output[1]
        assert hidden.shape == (2, 6, 32)
        if hidden.norm() > 0:
            seen.append(float(hidden.norm()))
        for layer in range(2, NUM_LAYERS):
            seen.append(float(model.read(f"resid_post.{layer}").norm()))
    assert seen == pytest.approx([float(hidden.norm()) for hidden in expected[1:]])


def test_what_was_read_before_a_write_stays_and_what_was_read_in_place_changes() -> None:
    model = wrapped("gpt2")
    with torch.no_grad(), model.trace(IDS):
        alias = model.read("resid_post.1").save()
        copy = model.read("resid_post.1").clone().save()
        model.read("resid_post.1")[:] = 0
        replaced = model.read("resid_post.2").save()
        model.write("resid_post.2", torch.zeros_like(model.read("resid_post.2")))
        now = model.read("resid_post.2").save()
    assert torch.equal(copy, residuals("gpt2", input_ids=IDS)[0][1])
    assert not alias.any(), "a value changed in place shows the change: clone what you keep"
    assert replaced.any() and not now.any(), "a value that is written over stays as it was"


# Saving ---------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_what_leaves_a_trace() -> None:
    model = wrapped("llama")
    into: dict[int, Tensor] = {}
    with model.trace(IDS) as tracer:
        method = model.layers_output[0].save()
        function = nnsight.save(model.layers_output[1])
        unsaved = model.layers_output[1] * 2
        container = nnsight.save([])
        for layer in range(2, NUM_LAYERS):
            container.append(model.layers_output[layer])
            into[layer] = container[-1]
        output = tracer.result.save()
    expected, logits = residuals("llama", input_ids=IDS)
    for value, wanted in zip([method, function, *container], expected, strict=True):
        assert torch.equal(value, wanted)
    assert list(into) == [2, 3] and into[2] is container[0]
    assert torch.equal(output.logits, logits)
    with pytest.raises(NameError):
        print(unsaved)


def test_places_exist_only_inside_a_trace() -> None:
    model = wrapped("llama")
    for read in (lambda: model.layers_output[1], lambda: model.read("resid_post.1"), lambda: model.logits):
        with pytest.raises(ValueError, match="outside of interleaving"):
            read()


# Running a part -------------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_skipping_a_layer(family: str) -> None:
    model = wrapped(family)
    with model.trace(IDS):
        if family == "bloom":
            model.layers[1].skip((model.layers_input[1], None))
        else:
            model.layers[1].skip(model.layers_input[1])
        by_nnsight = model.logits.save()
    with model.trace(IDS):
        model.skip_layer(1)
        by_layer = model.logits.save()
    first, _ = residuals(family, input_ids=IDS)
    with changing(layers(family)[1], lambda hidden, _: first[0]):
        expected = residuals(family, input_ids=IDS)[1]
    torch.testing.assert_close(by_nnsight, expected)
    torch.testing.assert_close(by_layer, expected)


@families
@torch.no_grad()
def test_stopping(family: str) -> None:
    model = wrapped(family)
    ran = []
    watch = model.layer(2)._module.register_forward_hook(lambda *_: ran.append(2))
    try:
        with model.trace(IDS) as tracer:
            hidden = model.read("resid_post.1").clone().save()
            tracer.stop()
    finally:
        watch.remove()
    assert torch.equal(hidden, residuals(family, input_ids=IDS)[0][1])
    assert not ran, "layers above do not run"
    with model.trace(IDS):
        logits = model.logits.save()
    assert torch.equal(logits, residuals(family, input_ids=IDS)[1]), "the next trace runs whole"


# Everything at once ---------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_the_cache_answers_to_the_standard_names(family: str) -> None:
    model = wrapped(family)
    with model.trace(IDS) as tracer:
        cache = tracer.cache()
    expected, _ = residuals(family, input_ids=IDS)
    own = f"model.{LAYERS[family]}"
    attention = ATTENTIONS[family]
    for i in range(NUM_LAYERS):
        for view in (cache.layers[i], cache[f"model.layers.{i}"], cache[f"{own}.{i}"]):
            value = view.output
            assert torch.equal(value[0] if family == "bloom" else value, expected[i])
        assert cache.layers[i].self_attn.output[0] is cache[f"{own}.{i}.{attention}"].output[0]
    assert cache.ln_final.output.shape == (*IDS.shape, 32)
    assert torch.equal(cache.embed_tokens.output, plain(family).get_input_embeddings()(IDS))
    logits = cache.lm_head.output
    torch.testing.assert_close(torch.tanh(logits / 2) * 2 if family == "gemma2" else logits, head(family, expected[-1]))
    if family != "opt":  # there no module is the MLP
        assert cache.layers[2].mlp.output is cache[f"{own}.2.mlp"].output


@torch.no_grad()
def test_a_cache_of_some_modules_and_inputs() -> None:
    model = wrapped("gpt2")
    with model.trace(IDS) as tracer:
        chosen: list[Any] = [model.layers[1], model.layers[2].self_attn]
        cache = tracer.cache(modules=chosen, include_inputs=True, dtype=torch.float64)
    assert list(cache.keys()) == ["model.transformer.h.1", "model.transformer.h.2.attn"]
    expected, _ = residuals("gpt2", input_ids=IDS)
    assert torch.equal(cache.layers[1].output, expected[1].double())
    assert torch.equal(cache.layers[1].input, expected[0].double())


@families
def test_scanning_gives_shapes_without_computing(family: str) -> None:
    model = wrapped(family)
    with model.scan(IDS):
        shapes = nnsight.save({})
        shapes["pre"] = model.layers_input[0].shape
        shapes["attention"] = model.attentions_output[1].shape
        shapes["post"] = model.read("resid_post.2").shape
        shapes["logits"] = model.logits.shape
        fake = type(model.logits).__name__.removeprefix("nnsight.").strip()
        shapes["fake"] = fake
    assert shapes == {
        "pre": (2, 6, 32),
        "attention": (2, 6, 32),
        "post": (2, 6, 32),
        "logits": (2, 6, 400),
        "fake": "FakeTensor",
    }


# Inside a module's forward --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_source_reads_and_changes_operations() -> None:
    model = wrapped("llama")
    names = str(model.layers[0].self_attn.source)
    assert "attention_interface_1" in names
    with model.trace(IDS):
        attended = model.layers[1].self_attn.source.attention_interface_1.output[0].clone().save()
        after = model.read("attn_out.1").clone().save()
        model.layers[2].self_attn.source.attention_interface_1.output[0][:] = 0
        nothing = model.read("attn_out.2").clone().save()
    layer = layers("llama")[1]
    assert torch.equal(layer.self_attn.o_proj(attended.flatten(-2)), after)
    assert not nothing.any(), "Llama's output projection has no bias"


# Order ----------------------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_in_order_sorts_sites_as_the_model_meets_them(family: str) -> None:
    model = wrapped(family)
    asked = ["resid_post.2", "resid_post.0", "attn_out.0", "logits", "embed"]
    values: dict[str, Tensor] = {}
    with model.trace(IDS):
        for place in model.in_order(asked):
            values[str(place)] = model.read(place).clone()
    assert list(values) == ["embed", "attn_out.0", "resid_post.0", "resid_post.2", "logits"]
    expected, logits = residuals(family, input_ids=IDS)
    assert torch.equal(values["resid_post.2"], expected[2])
    assert torch.equal(values["logits"], logits)


@torch.no_grad()
def test_an_error_inside_a_trace_leaves_the_model_as_it_was() -> None:
    model = wrapped("llama")
    with pytest.raises(InterpError, match="expected a tensor of shape"), model.trace(IDS):
        model.write("resid_post.1", torch.zeros(3))
    with pytest.raises(ZeroDivisionError), model.trace(IDS):
        _ = model.layers_output[1] * (1 / 0)
    with model.trace(IDS):
        logits = model.logits.save()
    assert torch.equal(logits, residuals("llama", input_ids=IDS)[1])


# Sessions -------------------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_a_session_carries_values_from_trace_to_trace(family: str) -> None:
    model = wrapped(family)
    prompts = ["The quick brown fox", "Le renard brun saute"]
    logits = []
    with model.session():
        with model.trace(prompts[0]):
            hidden = model.read("resid_post.1")[:, -1]  # not saved
        for prompt in prompts:
            with model.trace(prompt):
                new = model.layers_output[2].clone()
                new[:, -1] = hidden
                model.layers_output[2] = new
                logits.append(model.logits.clone())
    source = residuals(family, **encoded(prompts[0]))[0][1][:, -1]

    def patch(value: Tensor, _: int) -> Tensor:
        value = value.clone()
        value[:, -1] = source
        return value

    for prompt, seen in zip(prompts, logits, strict=True):
        with changing(layers(family)[2], patch):
            expected = residuals(family, **positioned(family, encoded(prompt)))[1]
        torch.testing.assert_close(seen, expected)


# nnterp and nnsight users compute this by hand; here it is the model's own tail.
@families
@torch.no_grad()
def test_calling_modules_inside_a_trace(family: str) -> None:
    model = wrapped(family)
    with model.trace(PROMPT):
        early = model.layers_output[0]
        by_modules = model.lm_head(model.ln_final(early)).save()
        by_readout = model.readout(early).save()
        later = model.layers_output[2].clone().save()
        normed = model.ln_final.output.clone().save()
        last = model.logits.save()
    expected, logits = residuals(family, **encoded(PROMPT))
    torch.testing.assert_close(by_readout, head(family, expected[0]))
    softcapped = torch.tanh(by_modules / 2) * 2 if family == "gemma2" else by_modules
    torch.testing.assert_close(softcapped, head(family, expected[0]))
    assert torch.equal(later, expected[2]), "calls at hand are not taken for the forward pass"
    torch.testing.assert_close(head(family, expected[3]), last)
    assert normed.shape == later.shape
    assert torch.equal(last, logits)

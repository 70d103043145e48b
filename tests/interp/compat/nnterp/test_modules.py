"""The parts of a model by name, standardized or not, against its own modules and torch hooks."""

from __future__ import annotations

import pytest
import torch
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor, nn

from interp.compat.nnterp import nnsight_utils as utils
from interp.compat.nnterp.rename_utils import RenamingError
from interp.errors import InterpError
from tests.families.cases import build as build_family
from tests.interp.compat.nnterp.models import CLOSE, PROMPTS, hidden, ids_of, next_probs, raw, read_out, wrap
from tests.interp.reference import PLACES, build
from tests.tiny import tiny_tokenizer

KINDS = ("standardized", "raw")
TEXT = PROMPTS[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_modules(case: str, kind: str) -> None:
    model = wrap(kind, case)
    places = PLACES[case]
    at = model._module.get_submodule
    layers = places.layer.removesuffix(".{i}")
    assert utils.get_layers(model)._module is at(layers)
    assert utils.get_num_layers(model) == 4
    assert utils.get_layer(model, -1)._module is at(f"{layers}.3")
    assert utils.get_attention(model, 1)._module is at(f"{layers}.1.{places.attention}")
    assert utils.get_mlp(model, -2)._module is at(f"{layers}.2.{places.mlp}")
    assert utils.get_unembed_norm(model)._module is at(places.norm)
    assert utils.get_unembed(model)._module is at(places.head)
    embedding = {"gpt2": "transformer.wte", "gpt_neox": "gpt_neox.embed_in"}.get(case, "model.embed_tokens")
    assert utils.get_embed_tokens(model)._module is at(embedding)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox", "mixtral"])
@torch.no_grad()
def test_values(case: str, kind: str) -> None:
    model = wrap(kind, case)
    found: dict[str, Tensor] = {}
    with model.trace(TEXT):
        found["resid_pre.1"] = utils.get_layer_input(model, 1)[0].clone()
        found["attn_out.1"] = utils.get_attention_output(model, 1)[0].clone()
        found["mlp_out.1"] = utils.get_mlp_output(model, 1)[0].clone()
        found["resid_post.1"] = utils.get_layer_output(model, 1)[0].clone()
        logits = utils.get_logits(model)[0, -1].clone().save()
        probs = utils.get_next_token_probs(model)[0].save()
    for site, value in found.items():
        torch.testing.assert_close(value, hidden(case, TEXT, site), **CLOSE)
    torch.testing.assert_close(probs, next_probs(case, TEXT), **CLOSE)
    torch.testing.assert_close(logits.softmax(-1), next_probs(case, TEXT), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["llama", "gpt2"])
@torch.no_grad()
def test_a_layers_output_is_set(case: str, kind: str) -> None:
    model = wrap(kind, case)
    vector = torch.linspace(-1, 1, 32)
    with model.trace(TEXT):
        value = utils.get_layer_output(model, 2).clone()
        value[:, -1] = vector
        utils.set_layer_output(model, 2, value)
        probs = utils.get_next_token_probs(model)[0].save()
    torch.testing.assert_close(probs, next_probs(case, TEXT, {"resid_post.2": (-1, vector)}), **CLOSE)


def test_a_layers_tuple_is_kept() -> None:
    model = TransformersModel(build_family("bloom"), tokenizer=tiny_tokenizer(), task="text-generation")
    with torch.no_grad(), model.trace(TEXT):
        value = utils.get_layer_output(model, 1).flip(1)
        utils.set_layer_output(model, 1, value)
        entered = utils.get_layer_input(model, 2)
        same = bool((entered == value).all())
        assert same


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["gpt2", "gemma2", "cohere"])
@torch.no_grad()
def test_projection_through_the_models_own_tail(case: str, kind: str) -> None:
    model = wrap(kind, case)
    vectors = hidden(case, TEXT, "resid_post.1")
    torch.testing.assert_close(utils.project_on_vocab(model, vectors), read_out(case, vectors), **CLOSE)
    with model.trace(TEXT):
        inside = utils.project_on_vocab(model, utils.get_layer_output(model, 1))[0].clone().save()
        last = utils.project_on_vocab(model, utils.get_layer_output(model, 3))[0, -1].clone().save()
    torch.testing.assert_close(inside, read_out(case, vectors), **CLOSE)
    torch.testing.assert_close(last.softmax(-1), next_probs(case, TEXT), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_skipped_layers(kind: str) -> None:
    model = wrap(kind, "gpt2")
    with model.trace(TEXT):
        entered = utils.get_layer_input(model, 1).clone().save()
        utils.skip_layers(model, 1, -2)
        left = utils.get_layer_input(model, 3).clone().save()
    assert torch.equal(entered, left)
    with model.trace(TEXT):
        utils.skip_layer(model, 0, left)
        passed = utils.get_layer_output(model, 0).clone().save()
    assert torch.equal(passed, left)


@torch.no_grad()
def test_skipped_layers_that_return_a_tuple() -> None:
    model = TransformersModel(build_family("bloom"), tokenizer=tiny_tokenizer(), task="text-generation")
    with model.trace(TEXT):
        entered = utils.get_layer_input(model, 0).clone().save()
        utils.skip_layer(model, 0)
        left = utils.get_layer_input(model, 1).clone().save()
        logits = utils.get_logits(model).clone().save()
    assert torch.equal(entered, left) and logits.isfinite().all()


def test_names_that_the_user_gave_are_no_hindrance() -> None:
    """nnterp's own example for models that are not standardized."""
    names = dict(transformer="model", h="layers", ln_f="ln_final", attn="self_attn")
    model = TransformersModel(build("gpt2"), tokenizer=tiny_tokenizer(), task="text-generation", rename=names)
    assert utils.get_layers(model) is model.model.layers
    assert utils.get_attention(model, 0) is model.model.layers[0].self_attn
    found = utils.get_token_activations(model, [TEXT], layers=[1])
    torch.testing.assert_close(found[0, 0], hidden("gpt2", TEXT, "resid_post.1")[-1], **CLOSE)


def test_errors() -> None:
    model = raw("llama")
    with pytest.raises(InterpError, match="layer 4 is out of range: the model has 4 layers"):
        utils.get_layer(model, 4)
    with pytest.raises(InterpError, match="start_layer <= end_layer"):
        utils.skip_layers(model, 2, 1)
    opt = TransformersModel(build_family("opt"), tokenizer=tiny_tokenizer(), task="text-generation")
    with pytest.raises(RenamingError, match="no module that is its mlp"):
        utils.get_mlp(opt, 0)
    assert isinstance(utils.get_unembed(opt)._module, nn.Linear)


@torch.no_grad()
def test_next_token_probs_of_right_padded_prompts_are_refused() -> None:
    model = raw("llama")
    model.tokenizer.padding_side = "right"
    try:
        with pytest.raises(InterpError, match="padding_side = 'left'"), model.trace(PROMPTS):
            utils.get_next_token_probs(model).save()
    finally:
        model.tokenizer.padding_side = "left"
    assert ids_of(TEXT).shape[0] == 1

"""`LayerAccessor`: tuples are unwrapped and kept, whether or not they were read before."""

from __future__ import annotations

import pytest
import torch
from nnsight import NNsight

from interp.compat.nnterp import StandardizedTransformer
from interp.compat.nnterp.rename_utils import IOType, LayerAccessor
from interp.errors import InterpError
from tests.families.cases import build as build_family
from tests.interp.compat.nnterp.models import CLOSE, PROMPTS, hidden, ids_of, standardized
from tests.interp.reference import build
from tests.tiny import tiny_tokenizer

TEXT = PROMPTS[0]


@torch.no_grad()
def test_setting_before_the_first_read_keeps_the_rest_of_the_tuple() -> None:
    model = StandardizedTransformer(build("llama"), tokenizer=tiny_tokenizer(), check_renaming=False)
    assert model.attentions_output.returns_tuple is None
    value = torch.linspace(-1, 1, ids_of(TEXT).shape[1] * 32).reshape(1, -1, 32)
    with model.trace(TEXT):
        model.attentions_output[1] = value
        whole = model.layers[1].self_attn.output
        is_tuple, length, first = isinstance(whole, tuple), len(whole), whole[0].clone().save()
        after = model.layers_output[1].clone().save()
        mixed = model.layers_input[2].clone().save()
        assert is_tuple and length == 2
    assert torch.equal(first, value) and torch.equal(after, mixed)
    assert model.attentions_output.returns_tuple is None  # nothing was read


@pytest.mark.parametrize(
    ("family", "layers", "mlps"), [("llama", False, False), ("bloom", True, False), ("gpt_oss", False, True)]
)
@torch.no_grad()
def test_what_returns_a_tuple_is_known_after_loading(family: str, layers: bool, mlps: bool) -> None:
    model = StandardizedTransformer(build_family(family), tokenizer=tiny_tokenizer())
    assert model.layers_output.returns_tuple is layers
    assert model.attentions_output.returns_tuple is True
    assert model.mlps_output.returns_tuple is mlps
    with model.trace(input_ids=ids_of(TEXT)):
        whole = model.layers[0].mlp.output
        whole = whole[0] if mlps else whole
        same = whole is model.mlps_output[0]
        assert same


@torch.no_grad()
def test_the_second_token_of_a_tensor_is_not_taken_for_a_tuple() -> None:
    """`output[0]` of a tensor would be its first row."""
    model = standardized("llama")
    with model.trace(PROMPTS):
        rows = model.layers_output[0].shape[0]
        assert rows == len(PROMPTS)


@torch.no_grad()
def test_an_accessor_of_ones_own() -> None:
    model = standardized("llama")
    accessor = LayerAccessor(model, "self_attn.q_proj", IOType.INPUT)
    assert accessor.get_module(2)._module is model._model.model.layers[2].self_attn.q_proj
    with model.trace(TEXT):
        received = accessor[2][0].clone().save()
    torch.testing.assert_close(received, hidden("llama", TEXT, "attn_in.2"), **CLOSE)


@torch.no_grad()
def test_an_accessor_over_a_plain_nnsight_model() -> None:
    nn_model = NNsight(build("llama"), rename={"model.layers": "layers"})
    outputs = LayerAccessor(nn_model, "self_attn", IOType.OUTPUT, returns_tuple=False)
    assert outputs.returns_tuple is False  # what was said
    with nn_model.trace(input_ids=ids_of(TEXT)):
        read = outputs[1][0].clone().save()
        outputs(2)[:] = 0
        left = outputs[2].abs().max().save()
    assert outputs.returns_tuple is True  # what was seen
    torch.testing.assert_close(read, hidden("llama", TEXT, "attn_out.1"), **CLOSE)
    assert left == 0
    modules = LayerAccessor(nn_model, "mlp", None)
    assert [mlp._module for mlp in modules] == [layer.mlp for layer in nn_model._module.model.layers]


def test_errors() -> None:
    model = standardized("llama")
    with pytest.raises(InterpError, match=r"layers_output\[4\]: the model has 4 layers"):
        model.layers_output[4]
    with pytest.raises(InterpError, match="mlps_output"):
        LayerAccessor(model, "mlp", None)[0] = torch.zeros(1)
    with pytest.raises(InterpError, match="expected a tensor of shape"), model.trace(TEXT):
        model.mlps_output[0] = torch.zeros(1)


@torch.no_grad()
def test_a_family_in_which_no_module_is_the_mlp() -> None:
    model = StandardizedTransformer(build_family("opt"), tokenizer=tiny_tokenizer())
    layer = model._model.model.decoder.layers[1]
    with model.trace(input_ids=ids_of(TEXT)):
        received = model.mlps_input[1].clone().save()
        returned = model.mlps_output[1].clone().save()
    by_hand = layer.fc2(layer.activation_fn(layer.fc1(received)))
    torch.testing.assert_close(returned, by_hand, **CLOSE)

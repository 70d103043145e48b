"""Values by layer: tuples are unwrapped and kept; attention probabilities against eager attention's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nnsight import NNsight

from interp.compat.nnterp import StandardizedTransformer, rename_utils
from interp.compat.nnterp.rename_utils import AttnProbFunction, IOType, LayerAccessor, RenameConfig, RenamingError
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


class GPTJProbabilities(AttnProbFunction):
    def get_attention_prob_source(self, attention_module: Any, return_module_source: bool = False) -> Any:
        method = attention_module.source.self__attn_0.source
        return method if return_module_source else method.self_attn_dropout_0


class Scores(AttnProbFunction):
    """The scores before the mask."""

    def get_attention_prob_source(self, attention_module: Any, return_module_source: bool = False) -> Any:
        return attention_module.source.self__attn_0.source.torch_matmul_0


def loaded(family: str, **arguments: Any) -> StandardizedTransformer:
    return StandardizedTransformer(build_family(family), tokenizer=tiny_tokenizer(), **arguments)


@torch.no_grad()
def eager(family: str, layer: int) -> torch.Tensor:
    module: Any = build_family(family)
    module.set_attn_implementation("eager")
    return module(input_ids=ids_of(TEXT), output_attentions=True).attentions[layer]


@pytest.mark.parametrize("enable", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gptj", "gemma2"])
@torch.no_grad()
def test_they_are_eager_attentions_own(family: str, enable: bool) -> None:
    model = loaded(family, enable_attention_probs=enable)
    assert model.attn_probs_available and model.attention_probabilities.enabled
    with model.trace(input_ids=ids_of(TEXT)):
        found = model.attention_probabilities[1].clone().save()
    torch.testing.assert_close(found, eager(family, 1), **CLOSE)
    model.attention_probabilities.check_source()
    model.attention_probabilities.check_source(layer=1)


@torch.no_grad()
def test_they_can_be_changed_in_place_and_set() -> None:
    model = loaded("llama")
    with model.trace(TEXT):
        probabilities = model.attention_probabilities[1]
        probabilities[:, :, 1:, 0] = 0
        probabilities /= probabilities.sum(dim=-1, keepdim=True)
        written = probabilities.clone().save()
        in_place = model.logits.clone().save()
    with model.trace(TEXT):
        model.attention_probabilities[1] = written
        replaced = model.logits.clone().save()
    with model.trace(TEXT):
        clean = model.logits.clone().save()
    torch.testing.assert_close(in_place, replaced)
    assert not torch.allclose(clean, replaced, atol=1e-3)


@torch.no_grad()
def test_the_users_own_source() -> None:
    config = RenameConfig(attn_prob_source=GPTJProbabilities())
    model = loaded("gptj", rename_config=config)
    with model.trace(input_ids=ids_of(TEXT)):
        found = model.attention_probabilities[0].clone().save()
    torch.testing.assert_close(found, eager("gptj", 0), **CLOSE)
    model.attention_probabilities.check_source()


@pytest.mark.parametrize("printed", [True, False])
@pytest.mark.parametrize(
    ("family", "source"),
    [
        ("llama", rename_utils.default_attention_prob_source),
        ("gpt2", rename_utils.gpt2_attention_prob_source),
        ("bloom", rename_utils.bloom_attention_prob_source),
        ("gptj", rename_utils.gptj_attention_prob_source),
    ],
)
@torch.no_grad()
def test_nnterps_own_sources(family: str, source: Any, printed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    model = loaded(family, rename_config=RenameConfig(attn_prob_source=source))
    if printed:
        model.attention_probabilities.print_source()
        assert "dropout" in capsys.readouterr().out
        return
    with model.trace(input_ids=ids_of(TEXT)):
        found = model.attention_probabilities[1].clone().save()
    torch.testing.assert_close(found, eager(family, 1), **CLOSE)


def test_what_is_not_a_pattern_is_found_out() -> None:
    output = RenameConfig(attn_prob_source=lambda attention: attention.source.self_resid_dropout_0)
    with pytest.raises(RenamingError, match=r"expected attention probabilities of shape \(1, 4, 3, 3\), got"):
        loaded("gptj", rename_config=output, enable_attention_probs=True)
    scores = RenameConfig(attn_prob_source=Scores())
    with pytest.raises(RenamingError, match="rows that sum to 1"):
        loaded("gptj", rename_config=scores, enable_attention_probs=True)


def test_a_pattern_on_which_nothing_hangs_is_found_out() -> None:
    model = loaded("llama")
    torch.nn.init.zeros_(model._model.get_submodule("model.layers.1.self_attn.o_proj").weight)  # type: ignore[arg-type]
    model.attention_probabilities.check_source(0)
    with pytest.raises(RenamingError, match="layer 1: other attention probabilities leave the logits as they are"):
        model.attention_probabilities.check_source(1)


def test_they_are_enabled_without_checks_too() -> None:
    model = loaded("llama", check_renaming=False, enable_attention_probs=True)
    assert model.attn_probs_available
    model.attention_probabilities.check_source()


def test_a_family_that_never_forms_them() -> None:
    model = loaded("falcon")  # under sdpa
    assert not model.attn_probs_available
    with pytest.raises(ValueError, match="attn_implementation='eager'"), model.trace(TEXT):
        model.attention_probabilities[0].save()


def test_disabled() -> None:
    model = loaded("llama")
    model.attention_probabilities.disable()
    assert not model.attn_probs_available
    with pytest.raises(RenamingError, match="switched off"), model.trace(TEXT):
        model.attention_probabilities[0].save()


@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        ("llama", None, ["def eager_attention_forward", "softmax", "ALL_ATTENTION_FUNCTIONS"]),
        ("bloom", None, ["self_attention_dropout_0", "F.softmax"]),
        ("gptj", RenameConfig(attn_prob_source=GPTJProbabilities()), ["self_attn_dropout_0", "attn_dropout"]),
    ],
)
def test_where_they_come_from(
    family: str, config: RenameConfig | None, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded(family, rename_config=config).attention_probabilities.print_source()
    printed = capsys.readouterr().out
    for word in words:
        assert word in printed


def test_a_check_of_the_shape_alone() -> None:
    model = loaded("llama", enable_attention_probs=True, check_attn_probs_with_trace=False)
    model.attention_probabilities.check_source(use_trace=False)

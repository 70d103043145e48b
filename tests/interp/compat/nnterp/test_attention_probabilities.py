"""Attention probabilities against eager attention's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp.compat.nnterp import StandardizedTransformer, rename_utils
from interp.compat.nnterp.rename_utils import AttnProbFunction, RenameConfig, RenamingError
from tests.families.cases import build as build_family
from tests.interp.compat.nnterp.models import CLOSE, PROMPTS, ids_of
from tests.tiny import tiny_tokenizer

TEXT = PROMPTS[0]


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

"""The table of architectures against models built by transformers."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from interp.architectures import (
    ARCHITECTURES,
    LLAMA_LAYOUT,
    architecture_of,
    find_architecture,
    known_model_types,
    missing_paths,
)
from interp.errors import InterpError
from tests.tiny import FAMILIES, tiny_model


def test_no_model_type_has_two_records() -> None:
    counts = Counter(model_type for record in ARCHITECTURES for model_type in record.model_types)
    assert {model_type for model_type, count in counts.items() if count > 1} == set()
    assert known_model_types() == sorted(counts)
    families = [record.family for record in ARCHITECTURES]
    assert len(families) == len(set(families))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_path_is_there(family: str) -> None:
    module = tiny_model(family)
    record, known = architecture_of(family, module)
    assert known
    assert record is find_architecture(family)
    assert missing_paths(record, module) == []


def test_parallel_residual_is_the_config_s() -> None:
    record = find_architecture("gpt_neox")
    assert record is not None
    assert record.is_parallel(SimpleNamespace(use_parallel_residual=True)) is True
    assert record.is_parallel(SimpleNamespace(use_parallel_residual=False)) is False
    assert LLAMA_LAYOUT.is_parallel(SimpleNamespace()) is False


def test_a_model_without_its_head_is_refused() -> None:
    class Backbone(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

    with pytest.raises(InterpError, match=r"Backbone has no head at 'lm_head'.*AutoModelForCausalLM"):
        architecture_of("llama", Backbone(tiny_model("llama").get_submodule("model")))


def test_an_unknown_family_with_llama_s_modules_is_a_guess() -> None:
    record, known = architecture_of("llamoid", tiny_model("llama"))
    assert not known
    assert record.family == "llamoid"
    assert record.layer_paths == LLAMA_LAYOUT.layer_paths


def test_an_unknown_family_of_another_layout_is_refused() -> None:
    with pytest.raises(
        InterpError, match=r"unknown architecture 'gptoid'.*no layers at 'model.layers'.*Known: .*llama"
    ):
        architecture_of("gptoid", tiny_model("gpt2"))

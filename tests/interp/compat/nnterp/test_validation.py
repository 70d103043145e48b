"""The check of shapes: what it lets pass in every kind of family, and what it finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp.compat.nnterp import StandardizedTransformer
from interp.compat.nnterp.rename_utils import RenamingError, check_io, check_model_renaming
from interp.compat.nnterp.utils import dummy_inputs
from tests.families.cases import build as build_family
from tests.interp.compat.nnterp.models import standardized
from tests.tiny import tiny_tokenizer


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "gpt_oss", "mixtral", "jamba"])
def test_every_kind_of_family_passes(family: str) -> None:
    model = StandardizedTransformer(build_family(family), tokenizer=tiny_tokenizer())
    check_model_renaming(model, family, ["mlp"] if family == "opt" else [], allow_dispatch=True)


class Changed:
    """A model of which one member gives something else."""

    def __init__(self, model: StandardizedTransformer, name: str, value: Any) -> None:
        self._changed = {"model": model, name: value}

    def __getattr__(self, name: str) -> Any:
        changed = self.__dict__["_changed"]
        return changed[name] if name in changed else getattr(changed["model"], name)


@pytest.mark.parametrize(
    "name", ["layers_input", "attentions_input", "attentions_output", "mlps_input", "mlps_output", "layers_output"]
)
@pytest.mark.parametrize("layer", [0, 3])
@torch.no_grad()
def test_a_wrong_shape_in_any_layer_is_found(name: str, layer: int) -> None:
    model = standardized("llama")
    wrong = Changed(model, name, {i: torch.zeros(1, 3, 32 if i != layer else 31) for i in range(4)})
    message = rf"tiny: expected {name}\[{layer}\] to be \(1, 3, 32\), got \(1, 3, 31\)"
    with pytest.raises(RenamingError, match=message), model.trace(dummy_inputs()):
        check_io(wrong, "tiny", [])


@torch.no_grad()
def test_what_is_no_tensor_is_found() -> None:
    model = standardized("llama")
    wrong = Changed(model, "layers_output", {i: (torch.zeros(1, 3, 32),) for i in range(4)})
    with pytest.raises(RenamingError, match="got tuple"), model.trace(dummy_inputs()):
        check_io(wrong, "tiny", [])


@torch.no_grad()
def test_another_vocabulary_is_found() -> None:
    model = standardized("llama")
    message = r"lm_head.output to be \(1, 3, 7\), got \(1, 3, 400\)"
    with pytest.raises(RenamingError, match=message), model.trace(dummy_inputs()):
        check_io(Changed(model, "vocab_size", 7), "tiny", [])

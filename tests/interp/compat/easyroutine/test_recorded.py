"""What easyroutine 1.1.5 gave where it is right (`record.py`): the same keys, shapes and numbers here."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.compat.easyroutine import HookedModel, Intervention
from interp.model import StandardizedTransformer
from tests.interp.compat.easyroutine.record import FILE, FLAGS, INTERVENTIONS, PIVOTS, POSITIONS
from tests.interp.compat.transformer_lens.recorded_models import OTHER, PROMPT, digest, made, words

RECORDED: dict[str, Any] = json.loads(gzip.decompress(FILE.read_bytes()))
GIVEN, OTHERS = ({"input_ids": torch.tensor(ids)} for ids in (PROMPT, OTHER))


@pytest.fixture(scope="module")
def model() -> HookedModel:
    """The tiny Llama that was recorded."""
    module = made("llama", attn_implementation="eager")
    assert digest(module) == RECORDED["digest"]
    return HookedModel.from_pretrained(StandardizedTransformer(module, tokenizer=words()))


def same(found: Tensor, recorded: list[Any]) -> None:
    numbers, shape = recorded
    expected = torch.tensor(numbers).reshape(shape)
    torch.testing.assert_close(found.as_subclass(Tensor).detach(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("flag", FLAGS)
def test_flags(model: HookedModel, flag: str) -> None:
    cache = model.forward(GIVEN, ["all"], save_logits=True, **{f"extract_{flag}": True})
    recorded = RECORDED[f"extract_{flag}"]
    assert set(recorded) <= set(cache) | {f"values_L{layer}" for layer in range(2)}
    for key, expected in recorded.items():
        if key == "last_layernorm":
            for statistic, numbers in expected.items():
                same(cache[key][statistic].reshape(numbers[1]), numbers)
        else:
            same(cache[key], expected)


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_positions(model: HookedModel, positions: list[Any]) -> None:
    recorded = RECORDED["positions"][json.dumps(positions)]
    cache = model.forward(GIVEN, positions, pivot_positions=PIVOTS, extract_resid_out=True)
    assert list(cache["mapping_index"].values()) == recorded["mapping_index"]
    same(cache["resid_out_1"], recorded["resid_out_1"])


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_interventions(model: HookedModel, name: str) -> None:
    asked = dict(INTERVENTIONS[name])
    if asked.pop("patch", False):
        flag = "extract_" + asked["activation"].rsplit("_", 1)[0]
        asked["patching_values"] = model.forward(OTHERS, ["last-2"], **{flag: True})[asked["activation"]]
    cache = model.forward(GIVEN, ["all"], interventions=[Intervention(**asked)], save_logits=True)
    same(cache["logits"], RECORDED["interventions"][name])
    plain = model.forward(GIVEN, ["all"], save_logits=True)["logits"]
    assert not torch.allclose(cache["logits"], plain, atol=1e-3)


def test_generation(model: HookedModel) -> None:
    written: dict[str, Any] = dict(max_new_tokens=4, eos_token_id=None)
    assert model.generate(GIVEN, **written)["sequences"][0].tolist() == RECORDED["generate"]
    text = model.hf_tokenizer.decode(RECORDED["generate"], skip_special_tokens=True)
    assert model.generate(GIVEN, return_text=True, **written) == text
    twice = {name: value.repeat(2, 1) for name, value in GIVEN.items()}
    assert model.generate(twice, return_text=True, **written) == [text, text]


def test_prediction(model: HookedModel) -> None:
    found = model.predict(k=4, inputs=GIVEN, target_token_positions=["last"])
    assert isinstance(found, dict) and found == pytest.approx(RECORDED["predict"], abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)

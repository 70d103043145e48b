"""Lenses in the format of the tuned-lens library, made by hand as that library writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.translators import load_public
from tests.interp.lenses.twins import HookTwin
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS

Standardized = Callable[[str], StandardizedTransformer]


def write_public(folder: Path, head: torch.Tensor, *, prefix: str = "", bias: bool = True) -> nn.ModuleList:
    """A folder as the library's `TunedLens.save` leaves it; returns its translators, one for each `hidden_states`."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        translators = nn.ModuleList([nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE, bias=bias) for _ in range(NUM_LAYERS)])
    folder.mkdir(exist_ok=True)
    state = {f"{prefix}{name}": value for name, value in translators.state_dict().items()}
    torch.save(state, folder / "params.pt")
    printed = np.array_str(head.detach().numpy(), precision=1)  # the library's `tensor_hash`
    config = {
        "base_model_name_or_path": "somebody/tiny",
        "d_model": HIDDEN_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "bias": bias,
        "base_model_revision": None,
        "unembed_hash": hashlib.sha256(printed.encode()).hexdigest(),
        "lens_type": "linear_tuned_lens",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return translators


@pytest.mark.parametrize(("prefix", "bias"), [("", True), ("layer_translators.", True), ("", False)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_translators_take_the_hidden_states_that_they_were_trained_on(
    standardized: Standardized, tmp_path: Path, family: str, prefix: str, bias: bool
) -> None:
    model, twin = standardized(family), HookTwin(family)
    translators = write_public(tmp_path, model.lm_head.weight, prefix=prefix, bias=bias)
    lens = load_public(tmp_path, model)
    ids = [1, 30, 200, 77]
    hidden_states = twin.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    ours = lens.translate(twin.residuals(ids)[: NUM_LAYERS - 1], range(NUM_LAYERS - 1))
    for layer in range(NUM_LAYERS - 1):
        theirs = hidden_states[layer + 1][0]  # the library: h + translators[index](h) for h = hidden_states[index]
        torch.testing.assert_close(ours[layer], theirs + translators[layer + 1](theirs))
    assert lens.model_name == "somebody/tiny"


def test_a_lens_of_another_head_is_refused(standardized: Standardized, tmp_path: Path) -> None:
    model = standardized("llama")
    write_public(tmp_path, model.lm_head.weight.detach() + 1)
    with pytest.raises(InterpError, match=r"trained for 'somebody/tiny' with a head of hash \w{12}.*check=False"):
        load_public(tmp_path, model)
    assert load_public(tmp_path, model, check=False).layers == (0, 1, 2)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "unembed_hash": None}), encoding="utf-8")
    assert load_public(tmp_path, model).layers == (0, 1, 2)  # older lenses have none
    (tmp_path / "config.json").write_text(json.dumps({**config, "d_model": 64}), encoding="utf-8")
    with pytest.raises(InterpError, match="hidden_size 64 and 4 layers"):
        load_public(tmp_path, model)


def test_a_head_in_half_precision_has_the_librarys_hash(standardized: Standardized, tmp_path: Path) -> None:
    model = standardized("llama")
    write_public(tmp_path, model.lm_head.weight.detach().half())
    assert load_public(tmp_path, model).layers == (0, 1, 2)


def test_what_is_no_public_lens_is_refused(standardized: Standardized, tmp_path: Path) -> None:
    model = standardized("llama")
    write_public(tmp_path, model.lm_head.weight)
    params = tmp_path / "params.pt"
    state = torch.load(params, weights_only=True)
    torch.save({**state, "unembed.unembedding.weight": torch.zeros(2)}, params)  # a copy of the head is passed over
    assert load_public(tmp_path, model).layers == (0, 1, 2)
    torch.save({**state, "0.down.weight": torch.zeros(2)}, params)
    with pytest.raises(InterpError, match=r"'0\.down\.weight' is not part of a linear tuned lens"):
        load_public(tmp_path, model)
    torch.save({name: value for name, value in state.items() if not name.startswith("2.")}, params)
    with pytest.raises(InterpError, match=r"expected translators \[0, 1, 2, 3\], got \[0, 1, 3\]"):
        load_public(tmp_path, model)
    torch.save(Path, params)  # what is not a tensor is not loaded
    with pytest.raises(InterpError, match="cannot be read as a dictionary of tensors"):
        load_public(tmp_path, model)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InterpError, match="without base_model_name_or_path, d_model, num_hidden_layers"):
        load_public(tmp_path, model)

"""Each lens gives what the ten lines of plain nnsight say that its module opens with."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import numpy as np
import pytest
import torch

from interp.lenses import (
    Latents,
    attention_knockout,
    attention_object_lens,
    direct_logit_attribution,
    jacobian_lens,
    logit_lens,
    patchscope_generate,
    patchscope_grid,
    patchscope_lens,
    tuned_lens,
)
from interp.model import StandardizedTransformer
from interp.translators import AffineMap, TunedLens
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS

Standardized = Callable[[str], StandardizedTransformer]
PROMPT, TARGET = [1, 17, 250, 33, 94], [1, 40, 41, 42, 43, 44]
AT, LAYERS = 3, [0, 2, 3]
GROUPS = [[[5], [7, 11], [2]]]


def definition(lens: str, place: Path) -> Callable[..., dict[str, Any]]:
    """The block of a lens's docstring as a function of the names in it; nnsight reads its source, so it has a file."""
    text = import_module(f"interp.lenses.{lens}").__doc__
    found = re.search(r"plain nnsight.*?:\n\n((?:    [^\n]*\n|\n)+)", text, re.DOTALL)
    assert found is not None, f"interp/lenses/{lens}.py says no definition"
    block = dedent(found.group(1)).strip("\n")
    assert 4 <= len(block.splitlines()) <= 10
    file = place / f"definition_of_{lens}.py"
    head = "def run(given):\n    globals().update(given)\n"
    results = [name for name in ("log_prob", "contribution", "ids") if re.search(rf"\b{name}\b", block)]
    if lens == "patchscope_generate":
        head = "def run(given):\n    globals().update(given)\n    ids = given['ids']\n"
    file.write_text(f"import torch\n\n{head}{indent(block, '    ')}\n    return {results[-1]}\n", encoding="utf-8")
    spec = spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.run


def latents(count: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed))


def by_group(log_prob: torch.Tensor) -> np.ndarray:
    """(group,) of (1, vocabulary)."""
    return np.array([float(log_prob[0, group].logsumexp(-1)) for group in GROUPS[0]])


@torch.no_grad()
@pytest.mark.parametrize("lens", ["logit_lens", "tuned_lens", "jacobian_lens"])
def test_readings(lens: str, standardized: Standardized, tmp_path: Path) -> None:
    model, made = standardized("llama"), torch.Generator().manual_seed(2)
    matrix = 0.2 * torch.randn(NUM_LAYERS, HIDDEN_SIZE, HIDDEN_SIZE, generator=made)
    bias = torch.randn(NUM_LAYERS, HIDDEN_SIZE, generator=made)
    matrix[-1], bias[-1] = 0, 0  # the model's last layer is read as it is
    jacobian = matrix + torch.eye(HIDDEN_SIZE)
    tuned = TunedLens.of(model)
    tuned.take({f"{name}.{j}": of[j] for j in tuned.layers for name, of in (("weight", matrix), ("bias", bias))})
    maps = AffineMap(tuple(range(NUM_LAYERS)), jacobian, torch.zeros(NUM_LAYERS, HIDDEN_SIZE))
    found = {
        "logit_lens": lambda: logit_lens(model, [PROMPT], GROUPS),
        "tuned_lens": lambda: tuned_lens(model, tuned, [PROMPT], GROUPS),
        "jacobian_lens": lambda: jacobian_lens(model, maps, [PROMPT], GROUPS),
    }[lens]()
    given = dict(model=model, prompt=PROMPT, layers=range(NUM_LAYERS), weight=matrix, bias=bias, jacobian=jacobian)
    wanted = definition(lens, tmp_path)(given)
    assert found.along("layer") == tuple(wanted) == tuple(range(NUM_LAYERS))
    for layer, log_prob in wanted.items():
        np.testing.assert_allclose(found.log_prob[0, layer], by_group(log_prob), atol=1e-4)


@torch.no_grad()
def test_attribution(standardized: Standardized, tmp_path: Path) -> None:
    model = standardized("llama")
    eps = model._module.config.rms_norm_eps
    wanted = definition("direct_logit_attribution", tmp_path)(dict(model=model, prompt=PROMPT, token=7, eps=eps))
    found = direct_logit_attribution(model, [PROMPT], {"a": [7]}, sites="attn_out.*")
    np.testing.assert_allclose(found.contribution[0, :, 0], [float(wanted[j][0]) for j in range(NUM_LAYERS)], atol=1e-5)


@torch.no_grad()
def test_patchscopes(standardized: Standardized, tmp_path: Path) -> None:
    model, states = standardized("llama"), latents(NUM_LAYERS)
    given: dict[str, Any] = dict(model=model, target_prompt=TARGET, position=AT, latents=states)
    source = Latents(states[:, None], range(NUM_LAYERS))
    wanted = definition("patchscope", tmp_path)({**given, "layers": LAYERS})
    found = patchscope_lens(model, source, TARGET, AT, GROUPS, layers=LAYERS)
    np.testing.assert_allclose(found.log_prob[0], [by_group(wanted[layer]) for layer in LAYERS], atol=1e-4)

    wanted = definition("patchscope_grid", tmp_path)({**given, "source_layers": [1, 3], "target_layers": LAYERS})
    grid = patchscope_grid(model, source, TARGET, AT, GROUPS, source_layers=[1, 3], target_layers=LAYERS)
    np.testing.assert_allclose(
        grid.log_prob[0], [[by_group(wanted[j, k]) for k in LAYERS] for j in (1, 3)], atol=1e-4
    )  # fmt: skip

    more = dict(ids=torch.tensor([TARGET]), latent=states[1], layer=1, max_new_tokens=5)
    ids = definition("patchscope_generate", tmp_path)({**given, **more})
    texts = patchscope_generate(model, source, TARGET, AT, layers=[1], max_new_tokens=5, stop_ids=())
    assert list(texts.ids[0][0]) == ids[0, len(TARGET) :].tolist()


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2])
def test_attention(window: int, standardized: Standardized, tmp_path: Path) -> None:
    model, received = standardized("llama"), latents(NUM_LAYERS, seed=3) / HIDDEN_SIZE**0.5
    given = dict(model=model, target_prompt=TARGET, prompt=TARGET, position=AT, received=received, layers=LAYERS)
    wanted = definition("attention_object", tmp_path)({**given, "window": window})
    found = attention_object_lens(
        model, Latents(received[:, None], range(NUM_LAYERS)), TARGET, AT, GROUPS, window=window, layers=LAYERS
    )
    np.testing.assert_allclose(found.log_prob[0], [by_group(wanted[layer]) for layer in LAYERS], atol=1e-4)

    wanted = definition("attention_knockout", tmp_path)({**given, "window": window, "block": [1, 3]})
    cut = attention_knockout(model, [TARGET], {"b": [1, 3]}, GROUPS, window=window, layers=LAYERS)
    np.testing.assert_allclose(cut.log_prob[0, :, 0], [by_group(wanted[layer]) for layer in LAYERS], atol=1e-4)

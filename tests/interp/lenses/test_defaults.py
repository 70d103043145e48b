"""torch's defaults (dtype, device, deterministic algorithms) change no number of the library's functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from interp import StandardizedTransformer
from interp.activations import collect
from interp.lenses import (
    Latents,
    attention_knockout,
    attention_object_lens,
    direct_logit_attribution,
    logit_lens,
    patchscope_generate,
    patchscope_grid,
    patchscope_lens,
    tuned_lens,
)
from interp.model.verify import prove
from interp.sites import Site
from interp.translators import GivenSequences, IdentityMap, TuningSettings, evaluate_tuned_lens, train_tuned_lens
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["The quick brown fox", "king king 1135 hello", "The quick brown dog"]
TARGETS = {"a": [5, 17], "b": [250]}
IDS = [[1, 17, 250, 33, 94, 301, 8], [1, 88, 5, 260], [1, 17, 250, 33, 7]]
GROUPS = [[[5, 17], [250]]] * 3


def _latents() -> torch.Tensor:
    return torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")


def _arrays(result: Any) -> list[np.ndarray]:
    return list(result.arrays().values())


def _collected(model: StandardizedTransformer) -> list[np.ndarray]:
    sites = [Site("resid_post", 1), Site("head_out", 2, 1), Site("mlp_post", 2), Site("attn_out", 3), Site("logits")]
    values = collect(model, IDS, sites, [[-1, 1], [0, 2], [3, 3]])
    return [value.numpy() for value in values.values()]


def _traced(model: StandardizedTransformer) -> list[np.ndarray]:
    found: dict[str, torch.Tensor] = {}
    with model.trace(input_ids=torch.tensor([IDS[0]], device="cpu")):
        for site in model.in_order(["pattern.1", "scores.2", "head_out.2", "resid_post.3", "final_norm", "logits"]):
            found[str(site)] = model.read(site).clone()
    found["probabilities"] = model.readout(found["resid_post.3"]).softmax(-1)
    return [value.numpy() for value in found.values()]


def _tuned(model: StandardizedTransformer) -> list[np.ndarray]:
    sequences = GivenSequences.of(model.tokenizer, IDS, repeat=True)
    found: list[np.ndarray] = []
    for optimizer in ("sgd", "adam"):
        settings = TuningSettings(steps=3, tokens_per_step=8, optimizer=optimizer, learning_rate=0.01)  # type: ignore[arg-type]
        lens = train_tuned_lens(model, sequences, settings)
        found += _arrays(tuned_lens(model, lens, Latents(_latents()[:2], [0, 2]), GROUPS))
        measured = evaluate_tuned_lens(model, lens, GivenSequences.of(model.tokenizer, IDS))
        found += [np.asarray(value) for value in vars(measured).values() if isinstance(value, np.ndarray | float)]
    return found


def _generated(model: StandardizedTransformer, **sampling: Any) -> list[np.ndarray]:
    written = patchscope_generate(
        model, PROMPTS, "cat cat ? king", target_positions=2, layers=[1, 3], max_new_tokens=3, **sampling
    )
    return [np.asarray(ids) for by_layer in written.ids for ids in by_layer]


def _proved(model: StandardizedTransformer) -> list[np.ndarray]:
    return [np.asarray([proof.difference, proof.allowed]) for proof in prove(model, attention=True)]


CALLS: dict[str, Callable[[StandardizedTransformer], list[np.ndarray]]] = {
    "trace": _traced,
    "prove": _proved,
    "collect": _collected,
    "logit lens": lambda model: _arrays(
        logit_lens(model, Latents(_latents(), range(4), reference=_latents()[3]), GROUPS)
    ),
    "logit lens on prompts": lambda model: _arrays(
        logit_lens(model, PROMPTS, targets=TARGETS, positions=["last", 1], sites=["resid_post.*", "attn_out.2"])
    ),
    "tuned lens": _tuned,
    "patchscope": lambda model: _arrays(
        patchscope_lens(model, Latents(_latents(), range(4)), IDS, [[2], [1], [3]], GROUPS)
    ),
    "patchscope on prompts": lambda model: _arrays(
        patchscope_lens(model, PROMPTS, "cat cat ? king", target_positions=2, targets=TARGETS)
    ),
    "patchscope from a layer on": lambda model: _arrays(
        patchscope_lens(
            model, PROMPTS, "cat cat ? king", target_positions=2, targets=TARGETS, patch="from_layer",
            mapping=IdentityMap(),
        )
    ),
    "patchscope grid": lambda model: _arrays(
        patchscope_grid(model, PROMPTS, "cat cat ? king", target_positions=2, targets=TARGETS)
    ),
    "generation": _generated,
    "sampled generation": lambda model: _generated(model, temperature=0.7, top_k=50, top_p=0.9, seed=3),
    "attention object": lambda model: _arrays(
        attention_object_lens(model, PROMPTS, "cat cat ? king", target_positions=2, targets=TARGETS)
    ),
    "knock-out": lambda model: _arrays(
        attention_knockout(model, PROMPTS, {"first": "first", "two": "1:3"}, window=2, targets=TARGETS)
    ),
    "attribution": lambda model: _arrays(direct_logit_attribution(model, PROMPTS, TARGETS)),
}  # fmt: skip


@contextmanager
def _defaults(dtype: torch.dtype, device: str, deterministic: bool) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)


# What is made on the meta device has no numbers.
SETTINGS = [(torch.float64, "cpu", False), (torch.bfloat16, "cpu", True), (torch.float16, "meta", False)]


def _model() -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def expected() -> dict[str, list[np.ndarray]]:
    model = _model()
    with torch.no_grad():
        return {name: call(model) for name, call in CALLS.items()}


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda setting: f"{setting[0]}-{setting[1]}")
def setting(request: pytest.FixtureRequest) -> tuple[StandardizedTransformer, Any]:
    """A model of whose family nothing is found out yet, and torch's defaults."""
    return _model(), request.param


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_the_numbers_are_the_same(
    name: str, setting: tuple[StandardizedTransformer, Any], expected: dict[str, list[np.ndarray]]
) -> None:
    model, defaults = setting
    with _defaults(*defaults):
        found = CALLS[name](model)
    assert len(found) == len(expected[name]) > 0
    for value, number in zip(found, expected[name], strict=True):
        assert value.dtype == number.dtype
        np.testing.assert_array_equal(value, number)


def test_a_model_is_loaded_and_proved_under_other_defaults() -> None:
    """With every kind of norm, of positions and of attention that its config view tries out."""
    for family in ("llama", "gpt2", "gemma2", "mistral"):
        plain = StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer())
        module = tiny_model(family)
        with _defaults(torch.float16, "meta", True):
            model = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
            assert str(model.spec) == str(plain.spec)
        assert model.digest() == plain.digest()

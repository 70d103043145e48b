"""Patchscope generation against plain transformers, which recompute the patched prompt for every token."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from interp.errors import InterpError
from interp.lenses import Latents, patchscope_generate
from interp.model import StandardizedTransformer
from interp.model.verdicts import verdicts_of
from interp.patching import generation_fits
from interp.readout import Sampling, stop_tokens
from tests.families import build
from tests.interp.lenses.patched import FAST, SLOW, PatchedTwin, wrapped
from tests.made import one_each
from tests.tiny import tiny_tokenizer

# Two lengths, an equal pair, written at the last token, a middle one, the first.
IDS = [[1, 17, 250, 33, 94, 301, 77], [1, 17, 250, 33, 94, 301, 77], [1, 60, 250, 33, 94, 301, 12], [1, 88, 5]]
AT = [6, 6, 3, 0]
TOKENS = 5
# Where the runner-up is so near, roundings may choose.
TIE = 1e-3


def latents_of(model: StandardizedTransformer, *shape: int) -> Tensor:
    """(layer, example, ..., hidden)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(model.num_layers, len(IDS), *shape, model.hidden_size, generator=generator)


def check(found: Any, twin: PatchedTwin, latents: Tensor, layers: list[int], at: Any, from_layer: bool = False) -> None:
    """Every text is what the twin writes, up to a tie."""
    compared = 0
    for example, ids in enumerate(IDS):
        positions = at[example] if isinstance(at[example], list) else [at[example]]
        for index, layer in enumerate(layers):
            written = range(layer, len(latents)) if from_layer else [layer]
            held = {j: latents[j, example].reshape(len(positions), -1) for j in written}
            expected, margin = twin.greedy(ids, positions, held, TOKENS, stop=2)
            if margin > TIE:
                assert list(found.ids[example][index]) == expected, (example, layer)
                compared += 1
    assert compared > len(IDS) * len(layers) // 2


@pytest.mark.parametrize("name", FAST + SLOW)
def test_greedy_texts_are_what_transformers_recomputes(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = wrapped(name)
    latents = latents_of(model)
    layers = [2, 0, model.num_layers - 1]  # any order
    with caplog.at_level(logging.WARNING, logger="interp"):
        found = patchscope_generate(
            model,
            Latents(latents[layers], layers),
            IDS,
            one_each(AT),
            max_new_tokens=TOKENS,
            stop_ids=[2],
            batch_size=3,
        )
    assert found.layers == tuple(layers)
    assert generation_fits(model, 9) == (name in FAST)
    check(found, PatchedTwin(name), latents, layers, AT)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bloom"])
def test_several_positions_from_a_layer_on(name: str) -> None:
    model = wrapped(name)
    latents = latents_of(model, 2)
    at = [[4, 6], [6, 2], [0, 3], [1, 0]]
    found = patchscope_generate(
        model,
        Latents(latents, range(model.num_layers)),
        IDS,
        at,
        layers=[3, 1],
        patch="from_layer",
        max_new_tokens=TOKENS,
        stop_ids=[2],
    )
    check(found, PatchedTwin(name), latents, [3, 1], at, from_layer=True)


def test_other_sites_are_served_the_plain_way() -> None:
    """`resid_pre` of a layer is `resid_post` of the one before."""
    model = wrapped("llama")
    latents = latents_of(model)
    given: dict[str, Any] = dict(target_prompts=IDS, target_positions=one_each(AT), max_new_tokens=TOKENS, stop_ids=[2])
    pre = patchscope_generate(model, Latents(latents[:2], [1, 2]), site="resid_pre", **given)
    post = patchscope_generate(model, Latents(latents[:2], [0, 1]), **given)
    assert pre.ids == post.ids


@pytest.mark.parametrize("name", ["llama", "mistral", "bloom"])
def test_texts_end_with_a_stop_token_and_the_others_go_on(name: str) -> None:
    """The stop tokens are some that are chosen: runs leave at different steps, of one prompt and of several."""
    model = wrapped(name)
    latents = latents_of(model)
    for ids, at in ((IDS, AT), ([IDS[0]] * len(IDS), [6] * len(IDS))):
        given: dict[str, Any] = dict(target_prompts=ids, target_positions=one_each(at), layers=range(model.num_layers))
        free = patchscope_generate(model, Latents(latents), **given, max_new_tokens=8, stop_ids=[])
        assert all(len(row) == 8 for rows in free.ids for row in rows)
        stops = {rows[layer][(layer + 1) * 2 - 1] for rows in free.ids for layer in range(3)}
        ended = patchscope_generate(model, Latents(latents), **given, max_new_tokens=8, stop_ids=stops)
        for freely, rows in zip(free.ids, ended.ids, strict=True):
            for whole, row in zip(freely, rows, strict=True):
                first = next((at + 1 for at, token in enumerate(whole) if token in stops), len(whole))
                assert row == whole[:first]
        assert len({len(row) for rows in ended.ids for row in rows}) > 1


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped("gemma3_text")
    latents = latents_of(model)
    for sampling in ({}, {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 3}):
        given: dict[str, Any] = dict(
            target_prompts=IDS, target_positions=one_each(AT), max_new_tokens=6, stop_ids=[2], **sampling
        )
        whole = patchscope_generate(model, Latents(latents, range(4)), **given)
        alone = patchscope_generate(model, Latents(latents, range(4)), **given, batch_size=1)
        assert alone.ids == whole.ids
        some = patchscope_generate(model, Latents(latents[[3, 1]], [3, 1]), **given)
        assert some.ids == tuple((rows[3], rows[1]) for rows in whole.ids)
        with monkeypatch.context() as patched:
            patched.setattr(import_module("interp.lenses.patchscope_generate"), "CACHE_BYTES", 1)
            assert patchscope_generate(model, Latents(latents, range(4)), **given).ids == whole.ids
        shorter = patchscope_generate(model, Latents(latents, range(4)), **given | {"max_new_tokens": 3})
        assert shorter.ids == tuple(tuple(row[:3] for row in rows) for rows in whole.ids)


def test_the_plain_way_draws_the_same() -> None:
    fast = wrapped("llama")
    slow = StandardizedTransformer(build("llama"), tokenizer=tiny_tokenizer(), verify=False)
    verdicts_of(slow)["walk"] = False
    given: dict[str, Any] = dict(
        target_prompts=IDS,
        target_positions=one_each(AT),
        layers=[1, 3],
        max_new_tokens=6,
        temperature=1.0,
        seed=5,
        stop_ids=[2],
    )
    latents = latents_of(fast)[[1, 3]]
    assert (
        patchscope_generate(fast, Latents(latents), **given).ids
        == patchscope_generate(slow, Latents(latents), **given).ids
    )


def test_seeds_and_temperatures_differ() -> None:
    model = wrapped("llama")
    latents = latents_of(model)

    def drawn(**sampling: Any) -> Any:
        return patchscope_generate(
            model, Latents(latents, range(4)), IDS, one_each(AT), max_new_tokens=6, stop_ids=[], **sampling
        ).ids

    assert drawn(temperature=1.0, seed=1) == drawn(temperature=1.0, seed=1)
    assert drawn(temperature=1.0, seed=1) != drawn(temperature=1.0, seed=2)
    assert drawn(temperature=1e-4, seed=1) == drawn()  # next to none is greedy
    assert drawn(temperature=1.0, top_k=1) == drawn()
    assert drawn(temperature=1.0, top_p=1e-9) == drawn()


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.2, 3.0),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(0.05, 1.0),
)
def test_draws_follow_transformers_distribution(
    seed: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Evenly spaced noise falls on each token in proportion to its probability."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed)) * 2
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [] if top_k is None else [TopKLogitsWarper(top_k)]
    warpers += [] if top_p is None else [TopPLogitsWarper(top_p)]
    expected = LogitsProcessorList(warpers)(torch.zeros(1, 0), logits.clone()).softmax(-1)[0].double()
    noise = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = Sampling(temperature, top_k, top_p).choose(logits.expand(len(noise), -1), noise)
    shares = torch.bincount(drawn, minlength=12).double() / len(noise)
    torch.testing.assert_close(shares, expected, atol=2e-4, rtol=0)


def test_noise_is_even_and_its_own_for_each_example_and_layer() -> None:
    sampling = Sampling(1.0, seed=7)
    rows = np.stack([sampling.noise(example, layer, 50) for example in range(40) for layer in range(10)])
    assert len(np.unique(rows)) == rows.size
    counts, _ = np.histogram(rows, bins=20, range=(0, 1))
    assert chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(sampling.noise(3, 2, 10), sampling.noise(3, 2, 50)[:10])


def test_texts_and_accuracy() -> None:
    model = wrapped("llama")
    found = patchscope_generate(model, Latents(latents_of(model), range(4)), IDS, one_each(AT), max_new_tokens=6)
    tokenizer = tiny_tokenizer()
    assert found.texts[1][2] == tokenizer.decode(list(found.ids[1][2]), skip_special_tokens=True)
    answers = [texts[3].strip()[:3] or "?" for texts in found.texts]
    assert found.accuracy(answers)[3] >= 0.75


def test_what_ends_a_text_is_the_models_own() -> None:
    model = StandardizedTransformer(build("llama"), tokenizer=tiny_tokenizer(), verify=False)
    module: Any = model._module
    module.generation_config.eos_token_id = [2, 7]
    assert stop_tokens(model) == (2, 7)
    module.generation_config.eos_token_id = None
    assert stop_tokens(model) == (model.tokenizer.eos_token_id,)


def test_bfloat16_is_near_float32() -> None:
    """Stated: of greedy first tokens that lead by 1 in float32 logits, all are the same in bfloat16."""
    model = StandardizedTransformer(build("llama").bfloat16(), tokenizer=tiny_tokenizer(), verify=False)
    latents, twin = latents_of(model), PatchedTwin("llama")
    found = patchscope_generate(model, Latents(latents, range(4)), IDS, one_each(AT), max_new_tokens=1, stop_ids=[])
    sure = 0
    for example, ids in enumerate(IDS):
        for layer in range(4):
            expected, margin = twin.greedy(ids, [AT[example]], {layer: latents[layer, example, None]}, 1)
            if margin > 1:
                assert list(found.ids[example][layer]) == expected
                sure += 1
    assert sure


def test_no_examples() -> None:
    model = wrapped("llama")
    found = patchscope_generate(model, Latents(torch.zeros(2, 0, model.hidden_size), [1, 0]), [], [])
    assert found.ids == ()
    assert found.layers == (1, 0)


def test_hooks_are_gone_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped("llama")
    assert generation_fits(model, 9)
    calls = [0]

    def fail(self: Sampling, logits: Tensor, noise: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == 3:
            raise InterpError("stopped")
        return logits.argmax(-1)

    monkeypatch.setattr(Sampling, "choose", fail)
    with pytest.raises(InterpError, match="stopped"):
        patchscope_generate(
            model, Latents(latents_of(model), range(4)), IDS, one_each(AT), max_new_tokens=5, stop_ids=[]
        )
    for module in model._module.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_overflow_is_said() -> None:
    model = wrapped("llama")
    latents = torch.full((1, len(IDS), model.hidden_size), float("nan"))
    with pytest.raises(InterpError, match="NaN or infinity"):
        patchscope_generate(model, Latents(latents, [3]), IDS, one_each(AT))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [1, 1]}, "each once"),
        ({"layers": [1, 4]}, "layers of the model, 0 to 3"),
        ({"max_new_tokens": 0}, "expected at least 1, got 0"),
        ({"batch_size": 0}, "expected at least 1, got 20 and 0"),
        ({"temperature": -1.0}, "temperature: expected 0"),
        ({"top_k": 3}, "give a temperature"),
        ({"temperature": 1.0, "top_k": 0}, "top_k: expected at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p: expected a probability"),
        ({"seed": -1}, "seed"),
        ({"patch": "from_layer"}, "got none of"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    model = wrapped("llama")
    arguments: dict[str, Any] = {"layers": [1, 2], **changes}
    source = Latents(torch.zeros(2, len(IDS), model.hidden_size), arguments["layers"])
    with pytest.raises(InterpError, match=message):
        patchscope_generate(model, source, IDS, one_each(AT), **arguments)

"""Every argument of the lenses on prompts does what it does of the lens that takes latents.

Sources are read in plain transformers here, words are found by the policies; what the lenses on latents make of these
is held against twins elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.lenses import (
    Latents,
    attention_knockout,
    attention_object_lens,
    direct_logit_attribution,
    logit_lens,
    patchscope_generate,
    patchscope_grid,
    patchscope_lens,
)
from interp.prompts import answer_tokens
from interp.results import LensResult
from interp.translators.affine_maps import AffineMap, AffinePairs
from tests.interp.lenses.attention_twins import attention_inputs
from tests.interp.lenses.patched import PatchedTwin, wrapped
from tests.tiny import tiny_tokenizer

TEXTS = ["The quick brown fox", 'Deutsch: "Buch" - Italiano: "', "The lazy dog jumps over"]
INTO = "cat -> cat\n1135 -> 1135\n?"
WORDS: dict[str, Any] = {"a": ["dog", "the"], "b": [7, 9]}
POLICY = "all_prefixes"
SHAPES: dict[str, Any] = dict(top_k=2, batch_size=1)


def ids_of(text: str) -> list[int]:
    ids: list[int] = tiny_tokenizer()(text).input_ids
    return ids


TARGET = ids_of(INTO)
TWO: dict[str, Any] = dict(source_positions=[0, -1], target_positions=[-2, 1])
AT = [[len(TARGET) - 2, 1]] * len(TEXTS)


def groups(policy: str = POLICY) -> list[list[list[int]]]:
    return [[answer_tokens(tiny_tokenizer(), ["dog", "the"], policy), [7, 9]]] * len(TEXTS)


def sources(site: str) -> tuple[Tensor, Tensor]:
    """(layer, example, position, hidden) at the first and the last token, and (example, hidden) at the end."""
    residuals = [PatchedTwin("llama").residuals(ids_of(text)) for text in TEXTS]
    own = torch.stack([each[-1, -1] for each in residuals])
    if site == "resid_pre":
        embedding = wrapped("llama")._module.get_input_embeddings().weight.detach()
        residuals = [
            torch.cat([embedding[ids_of(text)][None], each[:-1]]) for text, each in zip(TEXTS, residuals, strict=True)
        ]
    return torch.stack([each[:, [0, -1]] for each in residuals], dim=1), own


def assert_alike(found: LensResult, wanted: LensResult, group_names: tuple[str, ...] = ("a", "b")) -> None:
    assert found.axes == wanted.axes and found.group_names == group_names
    for axis in found.axes:
        assert found.along(axis) == wanted.along(axis)
    for name, values in wanted.arrays().items():
        np.testing.assert_allclose(found.arrays()[name], values, atol=2e-5, err_msg=name)


def mapping() -> AffineMap:
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(4, 32, 32, generator=generator) / 5, torch.randn(4, 32, generator=generator)
    return AffineMap((0, 1, 2, 3), weight, bias)


def pairs() -> AffinePairs:
    generator = torch.Generator().manual_seed(4)
    weight, bias = torch.randn(4, 4, 32, 32, generator=generator) / 5, torch.randn(4, 4, 32, generator=generator)
    return AffinePairs((0, 1, 2, 3), (0, 1, 2, 3), weight, bias)


@pytest.mark.parametrize("patch", ["one_layer", "from_layer"])
@pytest.mark.parametrize("site", ["resid_post", "resid_pre"])
def test_patchscope_lens(site: str, patch: Any) -> None:
    model, (latents, own) = wrapped("llama"), sources(site)
    held = [1, 2] if patch == "one_layer" else [1, 2, 3]
    given: dict[str, Any] = dict(layers=[1, 2], patch=patch, site=site, mapping=mapping(), **SHAPES)
    found = patchscope_lens(model, TEXTS, INTO, **TWO, targets=WORDS, policy=POLICY, **given)
    wanted = patchscope_lens(model, Latents(latents[held], held, reference=own), [TARGET] * 3, AT, groups(), **given)
    assert_alike(found, wanted)


@pytest.mark.parametrize("patch", ["one_layer", "from_layer"])
@pytest.mark.parametrize("site", ["resid_post", "resid_pre"])
def test_patchscope_grid(site: str, patch: Any) -> None:
    model, (latents, own) = wrapped("llama"), sources(site)
    held = [0, 2] if patch == "one_layer" else [0, 1, 2, 3]
    given: dict[str, Any] = dict(
        source_layers=held, target_layers=[0, 2], patch=patch, site=site, mapping=pairs(), **SHAPES
    )
    found = patchscope_grid(model, TEXTS, INTO, **TWO, targets=WORDS, policy=POLICY, **given)
    assert_alike(
        found,
        patchscope_grid(model, Latents(latents[held], reference=own), [TARGET] * 3, AT, groups(), **given),
    )


@pytest.mark.parametrize("patch", ["one_layer", "from_layer"])
@pytest.mark.parametrize("site", ["resid_post", "resid_pre"])
def test_patchscope_generation(site: str, patch: Any) -> None:
    model, (latents, _) = wrapped("llama"), sources(site)
    held = [0, 2] if patch == "one_layer" else [0, 1, 2, 3]
    given: dict[str, Any] = dict(
        layers=[2, 0], patch=patch, site=site, mapping=mapping(), max_new_tokens=3,
        temperature=0.9, top_k=20, top_p=0.8, seed=5,
    )  # fmt: skip
    found = patchscope_generate(model, TEXTS, INTO, **TWO, batch_size=2, **given)
    wanted = patchscope_generate(model, Latents(latents[held], held), [TARGET] * 3, AT, **given)
    assert found == wanted
    for change in ({"top_k": 1}, {"top_p": 1e-6}, {"seed": 6}, {"temperature": 9.0}):
        other = patchscope_generate(model, TEXTS, INTO, **TWO, **{**given, **change})
        assert other.ids != found.ids, change
    last = patchscope_generate(
        model, Latents(latents[held][:, 2:], held), [TARGET], AT[2:], example_numbers=[2], **given
    )
    assert last.ids[0] == found.ids[2]  # drawn by its number, not by its place


def test_knockout() -> None:
    model, ids = wrapped("llama"), [ids_of(text) for text in TEXTS]
    given: dict[str, Any] = dict(layers=[0, 2, 3], window=3, centred=True, **SHAPES)
    found = attention_knockout(
        model,
        TEXTS,
        {"start": "first", "before": ["-3", 1]},
        query_positions="-2:",
        targets=WORDS,
        policy=POLICY,
        **given,
    )
    wanted = attention_knockout(
        model,
        ids,
        [{"start": [0], "before": [1, len(own) - 3]} for own in ids],
        groups(),
        query_positions=[[len(own) - 2, len(own) - 1] for own in ids],
        **given,
    )
    assert_alike(found, wanted)


def test_attention_object() -> None:
    model, twin, ids = wrapped("llama"), PatchedTwin("llama"), [ids_of(text) for text in TEXTS]
    attentions = [layer.self_attn for layer in twin.layers]
    latents = torch.stack([attention_inputs(twin.model, attentions, own, 1) for own in ids], dim=1)
    own = torch.stack([twin.residuals(each)[-1, 1] for each in ids])
    given: dict[str, Any] = dict(layers=[0, 2], window=1, **SHAPES)
    found = attention_object_lens(
        model, TEXTS, INTO, source_positions=1, target_positions=-3, targets=WORDS, policy=POLICY, **given
    )
    wanted = attention_object_lens(
        model, Latents(latents, range(4), reference=own), [TARGET] * 3, [[len(TARGET) - 3]] * 3, groups(), **given
    )
    assert_alike(found, wanted)


@pytest.mark.parametrize("policy", ["first_token", POLICY])
def test_words_count_by_the_policy(policy: str) -> None:
    model = wrapped("llama")
    [(words, ids), *_] = groups(policy)
    tokens = {"a": words, "b": ids}
    assert_alike(
        logit_lens(model, TEXTS, targets=WORDS, policy=policy),
        logit_lens(model, TEXTS, targets=tokens),
    )
    found = direct_logit_attribution(model, TEXTS, WORDS, policy=policy)
    np.testing.assert_array_equal(found.contribution, direct_logit_attribution(model, TEXTS, tokens).contribution)
    assert sorted(groups(POLICY)[0][0]) != sorted(groups("first_token")[0][0])

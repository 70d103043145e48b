"""What a lens takes in place of prompts, and what it does with one source, some of the layers, words for latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.activations import collect
from interp.errors import InterpError
from interp.lenses import (
    Latents,
    attention_object_lens,
    jacobian_lens,
    logit_lens,
    patchscope_generate,
    patchscope_grid,
    patchscope_lens,
    tuned_lens,
)
from interp.model import StandardizedTransformer
from interp.results import LensResult
from interp.sites import Site
from interp.translators import AffineMap, TunedLens
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS

Standardized = Callable[[str], StandardizedTransformer]
IDS = [[1, 17, 250, 33, 94], [1, 88, 5], [1, 4, 4, 7, 8, 9]]
INTO = [[1, 40, 41, 42], [1, 60, 61], [1, 70, 71, 72, 73]]
GROUPS = [[[5], [7, 11]], [[9], [2]], [[3], [8]]]
ALL = range(NUM_LAYERS)


@pytest.fixture(scope="module")
def states(standardized: Standardized) -> Tensor:
    """(layer, example, hidden), after the last token of each prompt."""
    sites = [Site("resid_post", layer) for layer in ALL]
    return collect(standardized("llama"), IDS, sites, [[len(ids) - 1] for ids in IDS])["resid_post"][:, :, 0]


def assert_same(found: LensResult, wanted: LensResult) -> None:
    assert dict(found.coordinates) == dict(wanted.coordinates) and found.group_names == wanted.group_names
    for name, values in wanted.arrays().items():
        np.testing.assert_allclose(found.arrays()[name], values, atol=1e-4, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("lens", ["logit", "tuned", "jacobian"])
def test_readings_of_prompts_are_those_of_their_latents(lens: str, standardized: Standardized, states: Tensor) -> None:
    model, made, chosen = standardized("llama"), torch.Generator().manual_seed(1), [0, 2, 3]
    tuned = TunedLens.of(model, [0, 2])
    tuned.take({name: torch.randn(of.shape, generator=made) / 9 for name, of in tuned.tensors().items()})
    weight = torch.eye(HIDDEN_SIZE) + torch.randn(2, HIDDEN_SIZE, HIDDEN_SIZE, generator=made) / 9
    maps = AffineMap((0, 2), weight, torch.zeros(2, HIDDEN_SIZE))
    call: Callable[..., LensResult] = {
        "logit": logit_lens,
        "tuned": lambda model, *given: tuned_lens(model, tuned, *given),
        "jacobian": lambda model, *given: jacobian_lens(model, maps, *given),
    }[lens]
    source = Latents(states[chosen], chosen, states[-1])
    found = logit_lens(model, IDS, GROUPS, sites="resid_post.0,2,3") if lens == "logit" else call(model, IDS, GROUPS)
    assert_same(found, call(model, source, GROUPS))
    named = call(model, source, {"a": [5, 7], "b": [2]})
    assert named.group_names == ("a", "b")
    np.testing.assert_array_equal(named.log_prob, call(model, source, [[[5, 7], [2]]] * 3).log_prob)


def test_one_source_stands_for_all_target_prompts(standardized: Standardized, states: Tensor) -> None:
    model = standardized("llama")
    for lens, site in ((patchscope_lens, "resid_post"), (attention_object_lens, "attn_in")):
        found = lens(model, [IDS[0]], INTO, "last", GROUPS)  # type: ignore[operator]
        assert_same(found, lens(model, [IDS[0]] * 3, INTO, "last", GROUPS))  # type: ignore[operator]
        sites = [Site(site, layer) for layer in ALL]
        own = collect(model, IDS[:1], sites, [[len(IDS[0]) - 1]])[site][:, :, 0]
        assert_same(found, lens(model, Latents(own, ALL, states[-1, :1]), INTO, "last", GROUPS))  # type: ignore[operator]


def test_some_of_the_layers_in_any_order(standardized: Standardized, states: Tensor) -> None:
    model, source = standardized("llama"), Latents(states, ALL)
    whole = patchscope_lens(model, source, INTO, "last", GROUPS)
    some = patchscope_lens(model, source, INTO, "last", GROUPS, layers=[1, 3])
    np.testing.assert_allclose(some.log_prob, whole.log_prob[:, [1, 3]], atol=1e-5)
    shuffled = Latents(states[[2, 0, 3, 1]], [2, 0, 3, 1])
    grid = patchscope_grid(model, shuffled, INTO, "last", GROUPS, source_layers=[0, 3], target_layers=[1])
    wanted = patchscope_grid(model, source, INTO, "last", GROUPS, target_layers=[1])
    np.testing.assert_allclose(grid.log_prob, wanted.log_prob[:, [0, 3]], atol=1e-5)
    given: dict[str, Any] = dict(max_new_tokens=3, stop_ids=())
    texts = patchscope_generate(model, source, INTO, "last", **given)
    for held in (shuffled, Latents(states[[2, 0]])):  # the latter are those that the lens is asked for, in their order
        found = patchscope_generate(model, held, INTO, "last", layers=[2, 0], **given)
        assert [by_layer[0] for by_layer in found.ids] == [by_layer[2] for by_layer in texts.ids]


def test_what_is_for_prompts_is_refused_with_latents(standardized: Standardized, states: Tensor) -> None:
    model, source = standardized("llama"), Latents(states, ALL)
    maps = AffineMap((0,), torch.eye(HIDDEN_SIZE)[None], torch.zeros(1, HIDDEN_SIZE))
    for more in ({"positions": "first"}, {"sites": "embed"}, {"batch_tokens": 9}):
        with pytest.raises(InterpError, match="they say how prompts are read, and `Latents` are given"):
            logit_lens(model, source, GROUPS, **more)  # type: ignore[arg-type]
    with pytest.raises(InterpError, match="positions, batch_tokens: they say how prompts are read"):
        jacobian_lens(model, maps, source, GROUPS, positions="first")
    for more in ({"source_positions": 1}, {"source_model": model}, {"batch_tokens": 9}):
        with pytest.raises(InterpError, match="they say how source prompts are read, and `Latents` are given"):
            patchscope_lens(model, source, INTO, "last", GROUPS, **more)  # type: ignore[arg-type]
    with pytest.raises(InterpError, match="remote: prompts are run here"):
        logit_lens(model, IDS, GROUPS, remote="local")
    with pytest.raises(InterpError, match="remote: source prompts are read here"):
        patchscope_lens(model, IDS, INTO, "last", GROUPS, remote="local")
    with pytest.raises(InterpError, match=r"layers: there are latents of layers \[0, 1, 2, 3\], none of \[4\]"):
        jacobian_lens(model, maps, source, GROUPS, layers=[4])
    with pytest.raises(InterpError, match="policy: 'exact' says which tokens count as a word of `targets`"):
        logit_lens(model, source, GROUPS, policy="exact")

"""The patchscope lens over source and target layers, several positions and maps, against plain transformers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp.errors import InterpError
from interp.lenses import Latents, patchscope_grid, patchscope_lens
from interp.model import StandardizedTransformer
from interp.translators.affine_maps import AffineMap, AffinePairs
from tests.families import build
from tests.interp.lenses.patched import FAST, SLOW, PatchedTwin, wrapped
from tests.made import one_each
from tests.tiny import tiny_tokenizer

IDS = [[1, 17, 250, 33, 94, 301, 77], [1, 17, 250, 33, 94, 301, 77], [1, 60, 250, 33, 94, 301, 12], [1, 88, 5]]
AT = [6, 6, 3, 0]
GROUPS = [[[3, 9], [200]], [[5], [77, 78]], [[120], [7]], [[33], [399]]]


def latents_of(num_layers: int, width: int, *shape: int, seed: int = 0) -> Tensor:
    """(layer, example, ..., hidden)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_layers, len(IDS), *shape, width, generator=generator)


def expected_grid(
    twin: PatchedTwin, latents: Tensor, targets: list[int], at: list[list[int]], *, from_layer: bool = False
) -> np.ndarray:
    """(example, source layer, target layer, group), log-probabilities; latents (layer, example, position, hidden)."""
    found = np.empty((len(IDS), len(latents), len(targets), 2))
    for example, ids in enumerate(IDS):
        for source in range(len(latents)):
            for index, target in enumerate(targets):
                written = {target: latents[source, example]}
                if from_layer:
                    written |= {layer: latents[layer, example] for layer in range(target + 1, len(latents))}
                found[example, source, index] = twin.log_probs(twin.logits(ids, at[example], written), GROUPS[example])
    return found


@pytest.mark.parametrize("name", FAST + SLOW)
def test_every_cell_is_what_a_single_patched_prompt_gives(name: str) -> None:
    model, twin = wrapped(name), PatchedTwin(name)
    latents, targets = latents_of(3, model.hidden_size, 2), [0, model.num_layers - 1]
    at = [[6, 3], [6, 3], [3, 6], [0, 2]]
    found = patchscope_grid(
        model, Latents(latents, range(3)), IDS, at, GROUPS, target_layers=targets, top_k=3, batch_size=2
    )
    assert dict(found.coordinates) == {
        "example": (0, 1, 2, 3), "source_layer": (0, 1, 2), "target_layer": tuple(targets)
    }  # fmt: skip
    expected = expected_grid(twin, latents, targets, at)
    np.testing.assert_allclose(np.exp(found.log_prob), np.exp(expected), atol=1e-5, rtol=0)
    clean = [twin.log_probs(twin.logits(ids), groups) for ids, groups in zip(IDS, GROUPS, strict=True)]
    assert found.baseline is not None
    np.testing.assert_allclose(np.exp(found.baseline), np.exp(clean), atol=1e-5, rtol=0)
    last = twin.logits(IDS[3], at[3], {targets[-1]: latents[2, 3]}).log_softmax(-1)
    other = twin.logits(IDS[3], at[3], {0: latents[1, 3]}).log_softmax(-1)
    np.testing.assert_allclose(found.kl[3, 1, 0], float((last.exp() * (last - other)).sum()), atol=1e-4, rtol=1e-4)
    assert found.top_ids[3, 1, 0, 0] == int(other.argmax())


def test_the_diagonal_is_the_lens() -> None:
    model = wrapped("gemma2")
    latents = latents_of(4, model.hidden_size)
    reference = latents_of(1, model.hidden_size, seed=1)[0]
    for patch in ("one_layer", "from_layer"):
        given: dict[str, Any] = dict(patch=patch, top_k=3)
        lens = patchscope_lens(model, Latents(latents, range(4), reference), IDS, one_each(AT), GROUPS, **given)
        grid = patchscope_grid(model, Latents(latents, range(4), reference), IDS, one_each(AT), GROUPS, **given)
        for name, values in lens.arrays().items():
            own = grid.arrays()[name]
            if name not in ("baseline", "model_top_id"):
                own = np.stack([own[:, layer, layer] for layer in range(4)], axis=1)
            np.testing.assert_allclose(own, values, atol=1e-4, rtol=1e-4, err_msg=f"{patch} {name}")


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_later_layers_get_their_own_latents(name: str) -> None:
    model = wrapped(name)
    latents = latents_of(4, model.hidden_size, 1)
    at = [[position] for position in AT]
    found = patchscope_grid(
        model, Latents(latents, range(4)), IDS, at, GROUPS, target_layers=[1, 2], patch="from_layer"
    )
    expected = expected_grid(PatchedTwin(name), latents, [1, 2], at, from_layer=True)
    np.testing.assert_allclose(np.exp(found.log_prob), np.exp(expected), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_any_layers_positions_and_budget(data: st.DataObject) -> None:
    model, twin = wrapped("mistral"), PatchedTwin("mistral")
    targets = sorted(data.draw(st.sets(st.integers(0, 3), min_size=1)))
    count = data.draw(st.integers(1, 3))
    at = [data.draw(st.permutations(range(len(ids))).map(lambda order: list(order[:count]))) for ids in IDS]
    latents = latents_of(data.draw(st.integers(1, 3)), model.hidden_size, count, seed=data.draw(st.integers(0, 9)))
    budget, batch_size = data.draw(st.sampled_from([1, 30, 10_000])), data.draw(st.integers(1, 5))
    with pytest.MonkeyPatch.context() as patched:
        for module in ("interp.lenses.patchscope_grid", "interp.batching"):
            patched.setattr(import_module(module), "WALKING_TOKENS", budget)
        found = patchscope_grid(
            model, Latents(latents, range(len(latents))), IDS, at, GROUPS, target_layers=targets, batch_size=batch_size
        )
    expected = expected_grid(twin, latents, targets, at)
    np.testing.assert_allclose(np.exp(found.log_prob), np.exp(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_latents_of_a_wider_model_through_a_map_for_each_pair(name: str) -> None:
    model, twin = wrapped(name), PatchedTwin(name)
    width = model.hidden_size
    latents = latents_of(2, 48)
    generator = torch.Generator().manual_seed(3)
    pairs = AffinePairs((5, 9), (0, 2), torch.randn(2, 2, width, 48, generator=generator) / 7, torch.randn(2, 2, width))
    given: dict[str, Any] = dict(source_layers=[5, 9], target_layers=[0, 2])
    found = patchscope_grid(model, Latents(latents), IDS, one_each(AT), GROUPS, mapping=pairs, **given)
    for place, target in enumerate((0, 2)):
        mapped = torch.einsum("lnh,lth->lnt", latents, pairs.weight[:, place]) + pairs.bias[:, place, None]
        expected = expected_grid(twin, mapped[:, :, None], [target], [[at] for at in AT])
        np.testing.assert_allclose(np.exp(found.log_prob[:, :, [place]]), np.exp(expected), atol=1e-5, rtol=0)
    one = patchscope_grid(model, Latents(latents), IDS, one_each(AT), GROUPS, mapping=pairs.to_layer(2), **given)
    np.testing.assert_allclose(one.log_prob[:, :, 1], found.log_prob[:, :, 1], atol=1e-5)


def test_the_lens_through_a_map_of_several_positions() -> None:
    model, twin = wrapped("gpt2"), PatchedTwin("gpt2")
    latents = latents_of(2, 20, 2)
    generator = torch.Generator().manual_seed(3)
    mapping = AffineMap((1, 3), torch.randn(2, 32, 20, generator=generator) / 4, torch.randn(2, 32))
    at = [[6, 3], [6, 3], [3, 6], [0, 2]]
    found = patchscope_lens(model, Latents(latents, [1, 3]), IDS, at, GROUPS, mapping=mapping, batch_size=3)
    for place, layer in enumerate((1, 3)):
        mapped = latents[place] @ mapping.weight[place].T + mapping.bias[place]
        for example, ids in enumerate(IDS):
            logits = twin.logits(ids, at[example], {layer: mapped[example]})
            expected = twin.log_probs(logits, GROUPS[example])
            np.testing.assert_allclose(np.exp(found.log_prob[example, place]), np.exp(expected), atol=1e-5)


def test_bfloat16_is_near_float32() -> None:
    """Stated tolerance: 0.05 in probability; bfloat16 has 8 bits of mantissa, rounded at every layer."""
    model = StandardizedTransformer(build("llama").bfloat16(), tokenizer=tiny_tokenizer(), verify=False)
    latents = latents_of(3, 32, 1)
    at = [[position] for position in AT]
    found = patchscope_grid(model, Latents(latents, range(3)), IDS, at, GROUPS)
    expected = expected_grid(PatchedTwin("llama"), latents, [0, 1, 2, 3], at)
    np.testing.assert_allclose(np.exp(found.log_prob), np.exp(expected), atol=0.05)


def test_no_examples() -> None:
    model = wrapped("llama")
    found = patchscope_grid(model, Latents(torch.zeros(2, 0, 32), [3, 9]), [], [], [], top_k=4)
    assert found.top_ids.shape == (0, 2, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_layers": [2, 1, 0]}, "ascending order"),
        ({"source_layers": [0, 1]}, r"latents: expected shape \(layer, example, hidden_size\) = \(2, 4, 32\)"),
        ({"target_layers": [4]}, "layers of the model, 0 to 3"),
        ({"target_layers": []}, "ascending order"),
        ({"patch": "from_layer"}, r"needs latents of layers \[1, 2, 3\], got none of \[3\]"),
        ({"patch": "both"}, "patch: unknown 'both'"),
        ({"site": "embed"}, "a kind of site that each layer has, got 'embed'"),
        ({"latents": torch.zeros(3, 4, 20)}, r"got \(3, 4, 20\). Latents of another model need a `mapping`"),
        ({"mapping": AffinePairs((0, 1, 2), (1,), torch.zeros(3, 1, 32, 32), torch.zeros(3, 1, 32))}, "no target"),
        ({"mapping": AffineMap((0, 1, 2), torch.zeros(3, 30, 32), torch.zeros(3, 30))}, "mapping: expected .* 32"),
        ({"target_positions": [[6, 6]] * 4, "latents": torch.zeros(3, 4, 2, 32)}, "expected different tokens"),
        ({"target_positions": [[6, 5], [6], [3], [0]]}, r"equally many tokens in every example.* got \[1, 2\]"),
        ({"targets": []}, "targets: expected one entry for each of 4 examples, got 0"),
        ({"reference": torch.zeros(1, 3)}, "reference: expected shape"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = dict(
        latents=torch.zeros(3, 4, 32), target_prompts=IDS, target_positions=one_each(AT), targets=GROUPS
    )
    given |= changes
    source = Latents(given.pop("latents"), given.pop("source_layers", range(3)), given.pop("reference", None))
    with pytest.raises(InterpError, match=message):
        patchscope_grid(wrapped("llama"), source, **given)

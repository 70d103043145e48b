"""Maps of latents: equal to numpy's least squares, between layers and between models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp.errors import InterpError
from interp.translators.affine_maps import AffineFit, AffineMap, AffinePairs, IdentityMap
from tests.interp.lenses.twins import HookTwin
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS


def latents(*shape: int, seed: int = 0, offset: float = 0.0) -> Tensor:
    return offset + torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lstsq(source: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Weight (target, source) and bias (target,) by numpy, in float64."""
    rows = np.column_stack([source.double().numpy(), np.ones(len(source))])
    solved = np.linalg.lstsq(rows, target.double().numpy(), rcond=None)[0]
    return solved[:-1].T, solved[-1]


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(1, 3),
    source_size=st.integers(1, 6),
    target_size=st.integers(1, 6),
    rows=st.integers(8, 40),
    cut=st.integers(0, 40),
    offset=st.sampled_from([0.0, 100.0]),
)
def test_the_fit_is_numpys_whatever_the_batches(
    layers: int, source_size: int, target_size: int, rows: int, cut: int, offset: float
) -> None:
    source, target = latents(layers, rows, source_size, offset=offset), latents(layers, rows, target_size, seed=1)
    fit = AffineFit(layers, source_size, target_size)
    for part in (slice(0, cut), slice(cut, rows)):
        fit.add(source[:, part], target[:, part])
    batched, whole = AffineMap.of(fit, range(layers)), AffineMap.fit(source, target)
    for found in (batched, whole):
        for layer in range(layers):
            weight, bias = lstsq(source[layer], target[layer])
            np.testing.assert_allclose(found.weight[layer], weight, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found.bias[layer], bias, rtol=1e-4, atol=1e-5 * max(1, offset))


@torch.no_grad()
def test_from_every_layer_of_a_model_to_its_last() -> None:
    """The affine baseline of Patchscopes, section 4.1: one layer, the last, is the target of all."""
    twin = HookTwin("llama")
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 400, (40,), generator=generator).tolist() for _ in range(6)]
    residuals = torch.cat([twin.residuals(ids) for ids in prompts], dim=1)  # (layer, row, hidden)
    fitted = AffineMap.fit(residuals, residuals[-1:])
    mapped = fitted(residuals[[2, 0]], [2, 0])
    for place, layer in enumerate((2, 0)):
        weight, bias = lstsq(residuals[layer], residuals[-1])
        wanted = residuals[layer].double().numpy() @ weight.T + bias
        np.testing.assert_allclose(mapped[place], wanted, atol=1e-4)
    torch.testing.assert_close(fitted(residuals[-1:], [NUM_LAYERS - 1]), residuals[-1:], rtol=1e-4, atol=1e-4)


def test_between_models_of_different_width_and_between_all_layers(tmp_path: Path) -> None:
    source, target = latents(2, 30, 5), latents(3, 30, 8, seed=1)
    pairs = AffineMap.fit_pairs(source, target, layers=[1, 4], target_layers=[0, 2, 7])
    assert pairs.weight.shape == (2, 3, 8, 5)
    for to, target_layer in enumerate((0, 2, 7)):
        found = pairs.to_layer(target_layer)
        assert found.layers == (1, 4)
        for start in range(2):
            weight, bias = lstsq(source[start], target[to])
            np.testing.assert_allclose(found.weight[start], weight, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found.bias[start], bias, rtol=1e-4, atol=1e-5)
        assert found(latents(1, 4, 5), [4]).shape == (1, 4, 8)
    with pytest.raises(InterpError, match=r"no target layers \[1\], only \[0, 2, 7\]"):
        pairs.to_layer(1)
    pairs.save(tmp_path / "pairs.safetensors")
    again = AffinePairs.load(tmp_path / "pairs.safetensors")
    assert (again.layers, again.target_layers) == (pairs.layers, pairs.target_layers)
    assert torch.equal(again.weight, pairs.weight)
    assert torch.equal(again.bias, pairs.bias)


def test_ridge_shrinks_the_weight_and_leaves_the_bias_free() -> None:
    source, target = latents(1, 30, 4, offset=3.0), latents(1, 30, 2, seed=1, offset=50.0)
    ridge = 7.0
    found = AffineMap.fit(source, target, ridge=ridge)
    x, y = source[0].double(), target[0].double()
    centred = x - x.mean(0)
    weight = torch.linalg.solve(centred.T @ centred + ridge * torch.eye(4), centred.T @ (y - y.mean(0))).T
    np.testing.assert_allclose(found.weight[0], weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.bias[0], y.mean(0) - weight @ x.mean(0), rtol=1e-5)
    few = AffineMap.fit(source[:, :3], target[:, :3], ridge=ridge)  # fewer rows than numbers, yet one solution
    assert few.weight.isfinite().all()


def test_directions_in_which_nothing_varies_get_no_weight() -> None:
    varied = latents(1, 50, 3)
    source = torch.cat([varied, varied[..., :1], torch.full((1, 50, 1), 4.0)], dim=-1)  # a copy, and a constant
    target = latents(1, 50, 2, seed=1)
    found = AffineMap.fit(source, target)
    weight, bias = lstsq(varied[0], target[0])
    np.testing.assert_allclose(found(source, [0])[0], varied[0].numpy() @ weight.T + bias, atol=1e-4)
    np.testing.assert_allclose(found.weight[0, :, 0], found.weight[0, :, 3], atol=1e-5)
    np.testing.assert_allclose(found.weight[0, :, 4], 0, atol=1e-6)


def test_memory_does_not_depend_on_the_rows() -> None:
    def numbers(batches: int) -> int:
        fit = AffineFit(2, 4, 3)
        for seed in range(batches):
            fit.add(latents(2, 10, 4, seed=seed), latents(1, 10, 3, seed=seed + 100))
        held = [value for value in vars(fit).values() if isinstance(value, Tensor)]
        assert fit._offsets is not None
        return sum(value.numel() for value in [*held, *fit._offsets])

    assert numbers(1) == numbers(16)


def test_the_identity() -> None:
    held = latents(2, 3, HIDDEN_SIZE)
    assert IdentityMap()(held, [0, 5]) is held
    with pytest.raises(InterpError, match="with 1 layers"):
        IdentityMap()(held, [0])


def test_maps_are_kept(tmp_path: Path) -> None:
    fitted = AffineMap.fit(latents(2, 30, 5), latents(2, 30, 4, seed=1), layers=[3, 1])
    for name in ("a", "b"):
        fitted.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = AffineMap.load(tmp_path / "a")
    probe = latents(1, 3, 5, seed=2)
    assert torch.equal(loaded(probe, [1]), fitted(probe, [1]))
    assert loaded.layers == (3, 1)
    with pytest.raises(InterpError, match="expected layers, target_layers, weight, bias, got bias, layers, weight"):
        AffinePairs.load(tmp_path / "a")
    (tmp_path / "c").write_bytes(b"nothing")
    with pytest.raises(InterpError, match="is no file of affine maps"):
        AffineMap.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(latents(1, 3, 5), [2]), r"no source layers \[2\], only \[0, 1\]"),
        (lambda m: m(latents(1, 3, 6), [0]), "expected 5 numbers each, as the map was fitted to, got 6"),
        (lambda m: m(latents(3, 5), [0]), r"expected shape \(layer, row, hidden_size\) with 1 layers, got \(3, 5\)"),
        (lambda m: AffineMap((0, 0), m.weight, m.bias), r"each once, got \[0, 0\]"),
        (lambda m: AffineMap((0,), m.weight, m.bias), "for 1 layers"),
        (lambda m: AffinePairs((0,), (1,), m.weight[None], m.bias), "for 1 and 1 layers"),
        (lambda m: AffineMap.fit(latents(1, 5, 5), latents(1, 5, 2)), "5 rows cannot fix an affine map of 5 numbers"),
        (lambda m: AffineMap.fit(latents(1, 9, 5), latents(1, 8, 2)), r"target: expected .* \(1 or 1, 9, 2\), got"),
        (lambda m: AffineMap.fit(latents(1, 9, 5), latents(1, 9, 2), ridge=-1.0), "ridge: expected 0 or more"),
        (lambda m: AffineMap.fit(latents(1, 9, 5) / 0, latents(1, 9, 2)), "got NaN or infinity"),
        (lambda m: AffineFit(2, 5, 2).add(latents(1, 9, 5), latents(1, 9, 2)), r"source: expected .* \(2, any, 5\)"),
        (lambda m: AffineFit(1, 5, 2).solve(), "0 rows cannot fix"),
        (lambda m: AffineMap.of(pairs_fit(), [0]), "got one of pairs. Use AffinePairs.of"),
    ],
)
def test_errors_say_what_was_expected(call: Callable[[AffineMap], object], message: str) -> None:
    fitted = AffineMap.fit(latents(2, 30, 5), latents(2, 30, 4, seed=1))
    with pytest.raises(InterpError, match=message):
        call(fitted)


def pairs_fit() -> AffineFit:
    fit = AffineFit(1, 3, 3, num_targets=2)
    fit.add(latents(1, 9, 3), latents(2, 9, 3))
    return fit

"""Curves against scipy and numpy, leads against a slow reading of their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.stages.evaluate import tables as run_tables
from pipeline.stages.evaluate.tables import Lead, bootstrap_interval, curve, leads

FIELDS = ("mean", "std", "normal_low", "normal_high", "bootstrap_low", "bootstrap_high")


def samples(seed: int, shape: tuple[int, int], missing: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = generator.beta(0.5, 2, shape)
    values[generator.random(shape) < missing] = np.nan
    return values


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_curve_equals_scipy_on_the_examples_that_count(missing: float, confidence: float) -> None:
    values = samples(0, (37, 6), missing)
    result = curve(values, confidence, resamples=300, seed=5)
    for layer in range(6):
        known = values[np.isfinite(values[:, layer]), layer]
        assert result.n[layer] == len(known)
        assert result.mean[layer] == pytest.approx(np.mean(known), rel=1e-12)
        assert result.std[layer] == pytest.approx(np.std(known, ddof=1), rel=1e-12)
        low, high = scipy.stats.norm.interval(confidence, known.mean(), scipy.stats.sem(known))
        assert (result.normal_low[layer], result.normal_high[layer]) == pytest.approx((low, high), rel=1e-9)
        expected = scipy.stats.bootstrap(
            (known,), np.mean, n_resamples=300, confidence_level=confidence, method="percentile",
            rng=np.random.default_rng(5),
        ).confidence_interval  # fmt: skip
        assert (result.bootstrap_low[layer], result.bootstrap_high[layer]) == pytest.approx(tuple(expected), rel=1e-12)


def test_normal_interval_is_the_papers() -> None:
    """Mean -+ 1.96 standard errors (Dumas et al. 2025)."""
    values = samples(1, (200, 1))
    result = curve(values, 0.95, 10, 0)
    half = 1.959964 * values[:, 0].std(ddof=1) / math.sqrt(200)
    assert result.normal_high[0] - result.mean[0] == pytest.approx(half, rel=1e-6)


def test_too_few_examples_give_nan_not_zero() -> None:
    values = np.array([[0.5, np.nan, 0.25], [np.nan, np.nan, 0.75]])
    result = curve(values, 0.95, 50, 0)
    assert result.n.tolist() == [1, 0, 2]
    np.testing.assert_array_equal(result.mean, [0.5, np.nan, 0.5])
    for field in FIELDS[1:]:
        assert np.isnan(getattr(result, field)).tolist() == [True, True, False], field


def test_no_examples_and_no_layers() -> None:
    assert curve(np.empty((0, 3)), 0.95, 10, 0).n.tolist() == [0, 0, 0]
    assert curve(np.empty((5, 0)), 0.95, 10, 0).mean.shape == (0,)


def test_infinite_values_do_not_count() -> None:
    values = np.array([[1.0], [np.inf], [3.0], [-np.inf]])
    result = curve(values, 0.95, 10, 0)
    assert (result.n[0], result.mean[0]) == (2, 2.0)


def test_all_layers_share_their_resamples() -> None:
    column = samples(2, (25, 1))
    low, high = bootstrap_interval(np.hstack([column, column + 0.5, 1 - column]), 0.9, 400, 3)
    assert low[1] == pytest.approx(low[0] + 0.5, rel=1e-12)
    assert (1 - high[2], 1 - low[2]) == pytest.approx((low[0], high[0]), rel=1e-12)


def test_the_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = samples(3, (31, 4), 0.1)
    at_once = bootstrap_interval(values, 0.95, 257, 7)
    monkeypatch.setattr(run_tables, "_RESAMPLED_BYTES", 8 * 31 * 3)
    np.testing.assert_allclose(bootstrap_interval(values, 0.95, 257, 7), at_once, rtol=1e-13)


def test_the_seed_decides() -> None:
    values = samples(4, (20, 2))
    np.testing.assert_array_equal(bootstrap_interval(values, 0.95, 99, 1), bootstrap_interval(values, 0.95, 99, 1))
    assert not np.array_equal(bootstrap_interval(values, 0.95, 99, 1), bootstrap_interval(values, 0.95, 99, 2))


tables = arrays(np.float64, st.tuples(st.integers(2, 12), st.integers(1, 4)), elements=st.floats(0, 1, width=32))


@settings(deadline=None, max_examples=50)
@given(tables, st.integers(0, 100))
def test_intervals_lie_within_the_data_and_rows_of_nan_change_nothing(values: np.ndarray, seed: int) -> None:
    result = curve(values, 0.9, 40, seed)
    slack = 1e-12
    assert (result.bootstrap_low <= result.bootstrap_high + slack).all()
    assert (result.bootstrap_low >= values.min(axis=0) - slack).all()
    assert (result.bootstrap_high <= values.max(axis=0) + slack).all()
    assert (result.normal_low <= result.mean).all()
    padded = curve(np.vstack([values, np.full((2, values.shape[1]), np.nan)]), 0.9, 40, seed)
    for field in FIELDS:
        np.testing.assert_allclose(getattr(padded, field), getattr(result, field), rtol=1e-12, atol=1e-15)


def test_leads_of_three_regimes() -> None:
    means = {"a": [0.8, 0.6, 0.1, 0.0], "b": [0.0, 0.5, 0.4, 0.1], "c": [0.0, 0.0, 0.2, 0.9]}
    # a - b is 0.1 at layer 1 and -0.3 at layer 2; b - c is 0.2 at layer 2 and -0.8 at layer 3
    assert leads(means, [0, 1, 2, 3]) == [
        Lead("a", 0, 1),
        Lead("b", 2, 2, "a", pytest.approx(1.25)),
        Lead("c", 3, 3, "b", pytest.approx(2.2)),
    ]


def test_crossings_are_in_layers_not_in_indices() -> None:
    stretches = leads({"a": [0.4, 0.0], "b": [0.0, 0.4]}, [10, 20])
    assert stretches[1].taken_at == pytest.approx(15.0)


def test_nobody_leads_below_the_floor_and_nothing_is_taken_after_a_gap() -> None:
    means = {"a": [0.5, 0.001, 0.0], "b": [0.0, 0.002, 0.5]}
    assert leads(means, [0, 1, 2]) == [Lead("a", 0, 0), Lead("b", 2, 2)]
    assert leads(means, [0, 1, 2], floor=0.0)[1] == Lead("b", 1, 2, "a", pytest.approx(0.5 / 0.501))


def test_a_tie_keeps_the_leader_and_starts_with_the_first() -> None:
    assert leads({"a": [0.5, 0.5], "b": [0.5, 0.5]}, [0, 1]) == [Lead("a", 0, 1)]
    assert leads({"a": [0.1, 0.5], "b": [0.5, 0.5]}, [0, 1]) == [Lead("b", 0, 1)]


def test_nan_never_leads_and_gives_no_crossing() -> None:
    means = {"a": [0.5, math.nan], "b": [0.1, 0.2]}
    assert leads(means, [0, 1]) == [Lead("a", 0, 0), Lead("b", 1, 1)]
    assert leads({}, [0, 1]) == []


levels = st.sampled_from([0.0, 0.005, 0.01, 0.1, 0.25, 0.5, 0.9, math.nan])


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(levels, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_leads_agree_with_their_definition(curves: list[list[float]]) -> None:
    means = {f"g{i}": values for i, values in enumerate(curves)}
    layers = [3 * i for i in range(len(curves[0]))]
    stretches = leads(means, layers)
    led = {layer: s for s in stretches for layer in layers if s.first_layer <= layer <= s.last_layer}
    for index, layer in enumerate(layers):
        here = [values[index] for values in means.values() if values[index] >= run_tables.LEAD_FLOOR]
        assert (layer in led) == bool(here)
        if here:
            assert means[led[layer].group][index] == max(here)
    for stretch in stretches:
        if stretch.taken_at is not None:
            assert stretch.first_layer - 3 <= stretch.taken_at <= stretch.first_layer
            at = [np.interp(stretch.taken_at, layers, means[g]) for g in (stretch.group, stretch.taken_from or "")]
            assert at[0] == pytest.approx(at[1], abs=1e-12)

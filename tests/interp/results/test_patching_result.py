"""Results of patching: effects by hand, statistics against scipy, tables, files and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from interp.errors import InterpError
from interp.results import PatchingResult
from tests.tiny import tiny_tokenizer

EXAMPLES, LAYERS, POSITIONS = 7, 3, 4


def made(**changes: Any) -> PatchingResult:
    """A grid of random numbers with one cell that has an effect, and one that the first two examples lack."""
    generator = np.random.default_rng(0)
    patched = generator.normal(size=(EXAMPLES, LAYERS, POSITIONS, 2))
    patched[:, 1, 2] += 4
    patched[:2, :, 3] = np.nan
    given: dict[str, Any] = dict(
        patched=patched.astype(np.float32),
        clean=np.linspace(3, 4, 2 * EXAMPLES).reshape(-1, 2),
        corrupted=np.linspace(-1, 1, 2 * EXAMPLES).reshape(-1, 2),
        token_ids=np.broadcast_to(np.arange(4) + 10, (EXAMPLES, POSITIONS)),
        group_names=("kl", "probability"),
    )
    coordinates = {"example": range(EXAMPLES), "layer": range(LAYERS), "position": range(POSITIONS)}
    return PatchingResult(coordinates, **{**given, **changes})


def test_effect_and_recovery_by_hand() -> None:
    result = made()
    example, layer, position = 4, 2, 1
    patched, clean, corrupted = (
        result.patched[example, layer, position],
        result.clean[example],
        result.corrupted[example],
    )
    np.testing.assert_allclose(result.effect[example, layer, position], patched - corrupted, rtol=1e-5)
    recovered = (patched - corrupted) / (clean - corrupted)
    np.testing.assert_allclose(result.recovery[example, layer, position], recovered, rtol=1e-5)
    noising = made(direction="noising")
    np.testing.assert_allclose(noising.effect[example, layer, position], patched - clean, rtol=1e-5)
    np.testing.assert_allclose(noising.recovery[example, layer, position], recovered, rtol=1e-5)
    assert np.isnan(made(clean=result.corrupted).recovery).all()  # nothing to recover
    with pytest.raises(InterpError, match=r"direction: unknown 'noisy'\. Did you mean 'noising'"):
        made(direction="noisy")


@pytest.mark.parametrize("quantity", ["recovery", "effect", "patched"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_statistics_are_those_of_scipy(quantity: Any, direction: Any) -> None:
    result = made(direction=direction)
    table = result.statistics(quantity, resamples=500, confidence=0.9)
    assert len(table) == LAYERS * POSITIONS * 2
    assert set(table["family_size"]) == {LAYERS * POSITIONS}
    for layer, position in ((1, 2), (0, 3)):
        row = table.query("layer == @layer and position == @position and metric == 'probability'").iloc[0]
        values = result.values(quantity)[:, layer, position, 1]
        known = np.isfinite(values)
        values = values[known]
        assert row["n"] == len(values)
        np.testing.assert_allclose(row["mean"], values.mean())
        np.testing.assert_allclose(row["standard_error"], scipy.stats.sem(values))
        assert row["low"] < row["mean"] < row["high"]
        test = scipy.stats.permutation_test(
            (result.effect[known, layer, position, 1],), np.mean, permutation_type="samples"
        )
        if quantity != "recovery":  # which weighs examples by what there is to recover
            np.testing.assert_allclose(row["p_value"], test.pvalue)
    for _, own in table.groupby("metric"):
        corrected = scipy.stats.false_discovery_control(own["p_value"])
        np.testing.assert_allclose(own["p_corrected"], corrected)


def test_many_examples_are_flipped_at_random() -> None:
    generator = np.random.default_rng(1)
    patched = generator.normal(size=(24, 2, 1)) + np.array([0.0, 0.6])[:, None]
    result = PatchingResult(
        {"example": range(24), "layer": range(2)}, patched, np.ones((24, 1)), np.zeros((24, 1)), group_names=("m",)
    )
    found = result.statistics("effect")["p_value"]
    expected = scipy.stats.ttest_1samp(patched[..., 0], 0, axis=0).pvalue
    np.testing.assert_allclose(found, expected, rtol=0.5)
    assert found[1] < 0.05 < found[0]


def test_one_example_has_neither_interval_nor_test() -> None:
    table = made().select(example=[3]).statistics()
    assert table["low"].isna().all() and table["p_corrected"].isna().all() and set(table["family_size"]) == {0}
    with pytest.raises(InterpError, match="confidence: expected a number between 0 and 1"):
        made().statistics(confidence=95)


def test_table_and_file(tmp_path: Path) -> None:
    result = made(direction="noising")
    frame = result.to_frame()
    assert len(frame) == (EXAMPLES * POSITIONS - 2) * LAYERS * 2  # without the cells that two examples lack
    row = frame.query("example == 5 and layer == 1 and position == 2 and metric == 'kl'").iloc[0]
    assert row["patched"] == result.patched[5, 1, 2, 0] and row["clean"] == result.clean[5, 0]
    result.save(tmp_path / "result.safetensors")
    again = PatchingResult.load(tmp_path / "result.safetensors")
    assert again.direction == "noising" and again.coordinates == result.coordinates
    np.testing.assert_array_equal(again.patched, result.patched)
    parts = [result.select(example=[index]) for index in range(EXAMPLES)]
    np.testing.assert_array_equal(PatchingResult.concatenate(parts).patched, result.patched)
    assert PatchingResult.concatenate(parts).direction == "noising"


def test_heat_map_is_labelled_with_tokens() -> None:
    tokenizer = tiny_tokenizer()
    result = made()
    figure = result.plot(tokenizer=tokenizer)
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == [f"{index}: {tokenizer.decode([10 + index])}" for index in range(POSITIONS)]
    figure = result.plot("effect", metric="probability", significant=0.3)
    assert "corrected for 12 tests" in "".join(
        text.get_text() for text in figure.findobj() if hasattr(text, "get_text")
    )
    assert result.select(layer=1).plot(example=2, position_names=list("abcd")).axes
    with pytest.raises(InterpError, match="one or two axes beside"):
        result.select(layer=1, position=2).plot()

"""Figures of a lens's result: their numbers are those of the result, their text is shown letter by letter."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import numpy as np
import pytest

from interp.errors import InterpError
from interp.plots import lens_figure
from interp.plots.lens import mean_and_band
from interp.results import LensResult
from tests.interp.results.made import random_result
from tests.tiny import tiny_tokenizer

BY_LAYER = {"example": range(5), "layer": (1, 4, 5)}
GRID = {"example": range(2), "source_layer": range(4), "target_layer": range(3)}
POSITIONS = {"example": range(2), "position": ("first", "last"), "layer": range(4)}


def test_the_band_is_the_normal_interval_of_what_is_finite() -> None:
    values = np.array([[1.0, 5.0], [2.0, np.nan], [6.0, np.nan]])
    mean, low, high = mean_and_band(values, 0.95)
    half = 1.959964 * np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    np.testing.assert_allclose([mean[0], low[0], high[0]], [3, 3 - half, 3 + half], atol=1e-6)
    assert mean[1] == 5 and np.isnan(low[1]) and np.isnan(high[1])
    with pytest.raises(InterpError, match="confidence: expected a number between 0 and 1"):
        mean_and_band(values, 95)


@pytest.mark.parametrize(
    ("quantity", "values"),
    [
        ("probability", lambda r: np.exp(r.log_prob.astype(float))),
        ("log_prob", lambda r: r.log_prob),
        ("rank", lambda r: r.rank),
        ("entropy", lambda r: r.entropy[..., None]),
        ("kl", lambda r: r.kl[..., None]),
        ("surprisal", lambda r: r.surprisal[..., None]),
    ],
)
def test_curves_are_means_over_examples(quantity: Any, values: Any) -> None:
    result = random_result(BY_LAYER)
    figure = result.plot(quantity=quantity)
    wanted = np.asarray(values(result), dtype=float)
    lines, bands = figure.drawn("line"), figure.drawn("band")
    assert len(lines) == len(bands) == wanted.shape[-1]
    lowest, highest = figure.axes[0].get_ylim()
    for index, (line, band) in enumerate(zip(lines, bands, strict=True)):
        assert list(line.get_xdata()) == [1, 4, 5]
        np.testing.assert_allclose(line.get_ydata(), wanted[..., index].mean(0), rtol=1e-6)
        _, low, high = mean_and_band(wanted[..., index], 0.95)
        bounds = {"probability": (0, 1), "log_prob": (-np.inf, 0)}.get(quantity, (0, np.inf))
        x, y = band.get_path().vertices[:6].T
        edges = np.clip([*high, *low[::-1]], *bounds)
        np.testing.assert_allclose(y, np.clip(edges, lowest, highest), rtol=1e-6)
        assert edges.max() <= highest, "all of a band that can be is on the axis"
        assert list(x) == [1, 4, 5, 5, 4, 1]
    assert "mean of 5 examples, 95% interval" in figure.texts[0].get_text()
    assert len(figure.tips("point")) == 3 * len(lines) and figure.tips("point")[0].endswith("n = 5")


def test_curves_of_some_groups_and_of_one_example() -> None:
    result = random_result(BY_LAYER, names=("<b>it</b>", "en"))
    figure = result.plot(groups=["en", "<b>it</b>"], example=3, title="a title")
    assert [name.get_text() for name in figure.drawn("name")] == ["en", "<b>it</b>"]
    assert not figure.drawn("band"), "one example has none"
    np.testing.assert_allclose(
        figure.drawn("line")[1].get_ydata(), np.exp(result.log_prob[3, :, 0].astype(float)), rtol=1e-6
    )
    assert figure.texts[0].get_text() == "a title" and "<b>" not in figure._repr_html_()


def test_what_is_not_known_is_left_out_of_a_curve() -> None:
    result = random_result(BY_LAYER)
    surprisal = result.surprisal.copy()
    surprisal[:, 1], surprisal[1:, 2] = np.nan, np.nan
    figure = LensResult(result.coordinates, **{**result.arrays(), "surprisal": surprisal}).plot(quantity="surprisal")
    (line,) = figure.drawn("line")
    assert np.isnan(line.get_ydata()[1]) and line.get_ydata()[2] == pytest.approx(surprisal[0, 2])
    assert [tip.rpartition(" ")[2] for tip in figure.tips("point")] == ["5", "1"]


def values_of(tips: list[str], said: str = ": ") -> list[float]:
    """What tiles say, as numbers."""
    return [float(tip.partition(said)[2].split(",")[0].split(" ")[-1].replace("−", "-")) for tip in tips]


@pytest.mark.parametrize(("quantity", "array"), [("probability", "log_prob"), ("entropy", "entropy")])
def test_a_grid_is_a_heat_map_of_each_group(quantity: Any, array: str) -> None:
    result = random_result(GRID)
    figure = result.plot(quantity=quantity)
    values = np.asarray(result.arrays()[array], dtype=float)
    values = np.exp(values) if array == "log_prob" else values[..., None]
    mean = values.mean(0)
    assert len(figure.drawn("tile")) == values.shape[-1]
    wanted = np.moveaxis(mean, -1, 0).ravel()
    np.testing.assert_allclose(values_of(figure.tips("tile")), wanted, atol=6e-4)
    assert figure.tips("tile")[1].startswith("source layer 0, target layer 1: ")
    axes, bar = figure.axes[:2]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0", "1", "2", "3"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("Source layer", "Target layer")
    ends = [0.0, 1.0] if quantity == "probability" else [mean.min(), mean.max()]
    assert [tick.get_text() for tick in bar.get_yticklabels()] == [f"{end:.3g}" for end in ends]
    if quantity == "probability":
        assert [text.get_text() for text in figure.texts[1:]] == ["it", "en"]
    one = result.plot(example=1, quantity=quantity)
    np.testing.assert_allclose(values_of(one.tips("tile"))[:12], values[1, ..., 0].ravel(), atol=6e-4)


def test_positions_stand_across_and_layers_upward() -> None:
    result = random_result(POSITIONS)
    figure = result.plot("heat_map", position_names=["<s>", " a\n"])
    wanted = np.exp(result.log_prob[..., 1].astype(float)).mean(0).T
    np.testing.assert_allclose(values_of(figure.tips("tile")[8:]), wanted.ravel(), atol=6e-4)
    names = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert names == ["0: <s>", "1: ␣a↵"] and figure.axes[0].get_xlabel() == "Position"
    tokens = result.plot("tokens", example=1)
    probabilities = np.exp(result.top_log_prob[1, :, :, 0].T.astype(float))
    np.testing.assert_allclose(values_of(tokens.tips("tile"), ", probability, "), probabilities.ravel(), atol=6e-4)
    assert [text.get_text() for text in tokens.drawn("tile-text")] == [
        f"#{token}" for token in result.top_ids[1, :, :, 0].T.ravel()
    ]
    curve = result.select(layer=2).plot()
    assert [tick.get_text() for tick in curve.axes[0].get_xticklabels()] == ["first", "last"]


def test_top_tokens_by_layer_and_place() -> None:
    tokenizer = tiny_tokenizer()
    result = random_result(BY_LAYER)
    ids = result.top_ids.copy()
    ids[2, 0] = [1, 0, 399]
    figure = LensResult(result.coordinates, **{**result.arrays(), "top_ids": ids}).plot(
        "tokens", example=2, tokenizer=tokenizer
    )
    assert [text.get_text() for text in figure.drawn("tile-text")][:2] == ["<s>", "<pad>"]
    assert figure.tips("tile")[0].startswith("layer 1, place 1: <s>, token 1, probability, 0.")
    np.testing.assert_allclose(
        values_of(figure.tips("tile"), ", probability, "),
        np.exp(result.top_log_prob[2].astype(float)).ravel(), atol=6e-4,
    )  # fmt: skip
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "2", "3"]
    without = random_result(BY_LAYER, names=()).plot()
    assert without.drawn("tile") and not without.drawn("line"), "there are no groups to draw curves of"


def test_positions_that_a_prompt_does_not_have_are_left_out_of_its_tokens() -> None:
    result = random_result(POSITIONS)
    ids = result.top_ids.copy()
    ids[0, 1] = -1
    figure = LensResult(result.coordinates, **{**result.arrays(), "top_ids": ids}).plot("tokens")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["first"]
    assert len(figure.tips("tile")) == 4


@pytest.mark.parametrize(
    ("coordinates", "arguments", "message"),
    [
        (POSITIONS, {"kind": "curves"}, r"curves run along one axis .* result.select\(position='last'\)"),
        (
            BY_LAYER,
            {"kind": "heat_map"},
            "a heat map has two axes beside `example`, and this result has example, layer",
        ),
        (BY_LAYER, {"kind": "curve"}, "expected a kind of figure, got 'curve'. Did you mean 'curves'"),
        (BY_LAYER, {"quantity": "probabilty"}, "Did you mean 'probability'"),
        (BY_LAYER, {"groups": ["fr"]}, "group: no 'fr' in this result. Known: en, it"),
        (BY_LAYER, {"example": 9}, "example: no 9 in this result"),
        (POSITIONS, {"position_names": ["a"]}, "position_names: expected 2, one a position, got 1"),
    ],
)
def test_errors(coordinates: Any, arguments: Any, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        random_result(coordinates).plot(**arguments)
    with pytest.raises(InterpError, match="at least one example"):
        random_result(BY_LAYER).select(example=[]).plot()
    with pytest.raises(InterpError, match="rank is of groups, and this result has none"):
        lens_figure(random_result(BY_LAYER, names=()), "curves", quantity="rank")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name == "interp.plots" or name.startswith("interp.plots.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    for coordinates in (BY_LAYER, GRID):
        with pytest.raises(ImportError, match=r"pip install 'interpipe\[display\]'"):
            random_result(coordinates).plot()

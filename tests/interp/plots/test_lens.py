"""Figures of a lens's result: their numbers are those of the result, their text is shown letter by letter."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
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
    assert isinstance(figure, go.Figure)
    wanted = np.asarray(values(result), dtype=float)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(lines) == len(bands) == wanted.shape[-1]
    for index, (line, band) in enumerate(zip(lines, bands, strict=True)):
        assert list(line.x) == [1, 4, 5]
        np.testing.assert_allclose(line.y, wanted[..., index].mean(0), rtol=1e-6)
        _, low, high = mean_and_band(wanted[..., index], 0.95)
        bounds = {"probability": (0, 1), "log_prob": (-np.inf, 0)}.get(quantity, (0, np.inf))
        np.testing.assert_allclose(band.y, np.clip([*high, *low[::-1]], *bounds), rtol=1e-6)
        assert list(band.x) == [1, 4, 5, 5, 4, 1]
    assert "mean of 5 examples, 95% interval" in figure.layout.title.text


def test_curves_of_some_groups_and_of_one_example() -> None:
    result = random_result(BY_LAYER, names=("<b>it</b>", "en"))
    figure = result.plot(groups=["en", "<b>it</b>"], example=3, title="a title")
    assert [trace.name for trace in figure.data] == ["en", "&lt;b&gt;it&lt;/b&gt;"]  # no band of one example
    np.testing.assert_allclose(figure.data[1].y, np.exp(result.log_prob[3, :, 0].astype(float)))
    assert figure.layout.title.text == "a title"


def test_what_is_not_known_is_left_out_of_a_curve() -> None:
    result = random_result(BY_LAYER)
    surprisal = result.surprisal.copy()
    surprisal[:, 1], surprisal[1:, 2] = np.nan, np.nan
    figure = LensResult(result.coordinates, **{**result.arrays(), "surprisal": surprisal}).plot(quantity="surprisal")
    band, line = figure.data
    assert np.isnan(line.y[1]) and line.y[2] == surprisal[0, 2] and list(band.x) == [1, 1]


@pytest.mark.parametrize(("quantity", "array"), [("probability", "log_prob"), ("entropy", "entropy")])
def test_a_grid_is_a_heat_map_of_each_group(quantity: Any, array: str) -> None:
    result = random_result(GRID)
    figure = result.plot(quantity=quantity)
    values = np.asarray(result.arrays()[array], dtype=float)
    values = np.exp(values) if array == "log_prob" else values[..., None]
    assert len(figure.data) == values.shape[-1]
    for index, heat in enumerate(figure.data):
        np.testing.assert_allclose(np.asarray(heat.z, dtype=float), values[..., index].mean(0))
        assert list(heat.y) == [0, 1, 2, 3] and list(heat.x) == [0, 1, 2]
    assert figure.layout.yaxis.title.text == "source layer" and figure.layout.xaxis.title.text == "target layer"
    if quantity == "probability":
        assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
        assert [note.text for note in figure.layout.annotations] == ["it", "en"]
    one = result.plot(example=1, quantity=quantity)
    np.testing.assert_allclose(np.asarray(one.data[0].z, dtype=float), values[1, ..., 0])


def test_positions_stand_across_and_layers_upward() -> None:
    result = random_result(POSITIONS)
    heat = result.plot("heat_map", position_names=["<s>", " a\n"]).data[1]
    np.testing.assert_allclose(np.asarray(heat.z, dtype=float), np.exp(result.log_prob[..., 1].astype(float)).mean(0).T)
    assert list(heat.x) == ["0: &lt;s&gt;", "1: ␣a↵"] and list(heat.y) == [0, 1, 2, 3]
    tokens = result.plot("tokens", example=1).data[0]
    np.testing.assert_allclose(np.asarray(tokens.z), np.exp(result.top_log_prob[1, :, :, 0].T.astype(float)))
    assert [list(row) for row in tokens.text] == [
        [f"#{token}" for token in row] for row in result.top_ids[1, :, :, 0].T
    ]


def test_top_tokens_by_layer_and_place() -> None:
    tokenizer = tiny_tokenizer()
    result = random_result(BY_LAYER)
    ids = result.top_ids.copy()
    ids[2, 0] = [1, 0, 399]
    figure = LensResult(result.coordinates, **{**result.arrays(), "top_ids": ids}).plot(
        "tokens", example=2, tokenizer=tokenizer
    )
    heat = figure.data[0]
    assert list(heat.text[0])[:2] == ["&lt;s&gt;", "&lt;pad&gt;"] and list(heat.x) == [1, 2, 3]
    assert heat.hovertext[0][0] == "&lt;s&gt;<br>token id 1"
    np.testing.assert_allclose(np.asarray(heat.z), np.exp(result.top_log_prob[2].astype(float)))
    assert list(heat.y) == [1, 4, 5]
    without = random_result(BY_LAYER, names=()).plot()
    assert isinstance(without.data[0], go.Heatmap)  # there are no groups to draw curves of


def test_positions_that_a_prompt_does_not_have_are_left_out_of_its_tokens() -> None:
    result = random_result(POSITIONS)
    ids = result.top_ids.copy()
    ids[0, 1] = -1
    figure = LensResult(result.coordinates, **{**result.arrays(), "top_ids": ids}).plot("tokens")
    assert list(figure.data[0].x) == ["first"] and np.asarray(figure.data[0].z).shape == (4, 1)


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


def test_without_plotly_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_plotly(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_plotly)
    for coordinates in (BY_LAYER, GRID):
        with pytest.raises(ImportError, match=r"pip install 'interpipe\[display\]'"):
            random_result(coordinates).plot()


def test_importing_the_lenses_imports_no_plotly() -> None:
    code = "import sys, interp.lenses, interp.plots; print('plotly' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"

"""Figures of circuits show the numbers that they are given."""

from __future__ import annotations

import numpy as np
import pytest

from interp.errors import InterpError
from interp.results import EdgeScores, FaithfulnessCurve

NONE = np.nan


def test_the_strongest_edges_as_tiles() -> None:
    score = [[[1.0, NONE], [-4.0, 0.5], [0.1, 0.1]], [[3.0, NONE], [-6.0, 0.5], [0.1, 0.1]]]
    coordinates = {
        "example": [0, 1], "sender": ["embed", "mlp_out.0", "mlp_out.1"], "receiver": ["mlp_in.1", "logits"],
    }  # fmt: skip
    scores = EdgeScores(coordinates, score, [5.0, 7.0], [1.0, 3.0], metric="logit_difference")
    figure = scores.plot(strongest=2)
    assert figure.tips("tile") == [
        "embed to mlp_in.1: size of 2.000 ± 1.960, 2.000, n = 2",
        "mlp_out.0 to mlp_in.1: size of −5.000 ± 1.960, 5.000, n = 2",
    ]
    assert "highest 5, mlp_out.0 to mlp_in.1" in figure.alt
    assert len(scores.plot().tips("tile")) == 5
    [title] = [text for text in figure.texts if "strongest edges" in text.get_text()]
    assert title.get_window_extent().x1 <= figure.bbox.x1, "a few tiles are narrower than their title"
    with pytest.raises(InterpError, match="strongest: expected at least 1"):
        scores.plot(strongest=0)


def test_faithfulness_as_a_curve_beside_the_model() -> None:
    coordinates = {"example": [0], "proportion": ["0.1", "0.5", "1"]}
    curve = FaithfulnessCurve(coordinates, [[0.0, 3.0, 4.0]], [4.0], [0.0], [0, 3, 6], metric="m")
    figure = curve.plot()
    tips = figure.tips("point")
    assert [tip.split(":")[0] for tip in tips] == ["10 %", "50 %", "100 %"]
    assert "0.75" in tips[1]
    texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    assert f"Faithfulness of m: CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f}" in texts and "the model" in texts

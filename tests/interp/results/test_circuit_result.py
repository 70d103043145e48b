"""Scores of edges and faithfulness curves: arithmetic by hand, tables, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interp.errors import InterpError
from interp.results import EdgeScores, FaithfulnessCurve, area_under_roc

NONE = np.nan


def scores() -> EdgeScores:
    score = [[[1.0, NONE], [-4.0, 2.0]], [[3.0, NONE], [-6.0, 0.0]]]
    coordinates = {"example": [0, 1], "sender": ["embed", "mlp_out.0"], "receiver": ["mlp_in.1", "logits"]}
    return EdgeScores(coordinates, score, [5.0, 7.0], [1.0, 3.0], metric="logit_difference")


def test_edges_in_a_table() -> None:
    frame = scores().to_frame()
    assert frame["edge"].tolist() == ["mlp_out.0 -> mlp_in.1", "embed -> mlp_in.1", "mlp_out.0 -> logits"]
    assert frame["mean"].tolist() == [-5, 2, 1]
    np.testing.assert_allclose(frame["standard_error"], [1, 1, 1])
    assert scores().node_scores == {"embed": 2, "mlp_out.0": -4}
    assert scores().select(example=[0]).to_frame()["standard_error"].isna().all()


def test_edges_are_saved_and_ranked(tmp_path: Path) -> None:
    scores().save(tmp_path / "edges.safetensors")
    loaded = EdgeScores.load(tmp_path / "edges.safetensors")
    np.testing.assert_array_equal(loaded.score, scores().score)
    assert loaded.metric == "logit_difference" and loaded.direction == "noising"
    assert loaded.auroc(["mlp_out.0 -> mlp_in.1"]) == 1
    assert loaded.auroc(["embed -> mlp_in.1"]) == 0.5
    with pytest.raises(InterpError, match="no edge 'embed -> logits'"):
        loaded.auroc(["embed -> logits"])


def test_area_under_roc_by_hand() -> None:
    # Pairs of a true and another item: (3, 1), (3, 2), (2, 1) right, (2, 2) a tie.
    assert area_under_roc(np.array([3, 2, 1, 2]), np.array([1, 1, 0, 0])) == 3.5 / 4
    with pytest.raises(InterpError, match="got 2 true ones of 2"):
        area_under_roc(np.array([1, 2]), np.array([True, True]))


def test_cpr_and_cmd_by_hand(tmp_path: Path) -> None:
    coordinates = {"example": [0, 1], "proportion": ["0", "0.5", "1"]}
    # The means of the circuits are 0, 6 and 4; of clean prompts 4, of corrupted ones 0: f = 0, 1.5, 1.
    circuit = [[-1.0, 5.0, 3.0], [1.0, 7.0, 5.0]]
    curve = FaithfulnessCurve(coordinates, circuit, [3.0, 5.0], [-1.0, 1.0], [0, 3, 6], metric="m")
    np.testing.assert_allclose(curve.faithfulness, [0, 1.5, 1])
    assert curve.cpr == pytest.approx(0.5 * 0.75 + 0.5 * 1.25)
    assert curve.cmd == pytest.approx(0.5 * 0.75 + 0.5 * 0.25)
    assert curve.to_frame()["edges"].tolist() == [0, 3, 6]
    curve.save(tmp_path / "curve.safetensors")
    assert FaithfulnessCurve.load(tmp_path / "curve.safetensors").cpr == curve.cpr
    same = FaithfulnessCurve(coordinates, circuit, [3.0, 5.0], [3.0, 5.0], [0, 3, 6])
    with pytest.raises(InterpError, match="nothing to keep"):
        _ = same.faithfulness

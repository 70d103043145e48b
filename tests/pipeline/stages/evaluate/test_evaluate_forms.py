"""The stage `evaluate` on grids, generated texts and knock-outs, against numbers computed from their tables."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.evaluate import EvaluateConfig
from pipeline.stages.evaluate import __main__ as evaluate
from pipeline.stages.evaluate.__main__ import LensRows, evaluate_lens, summarize
from pipeline.stages.evaluate.tables import CurveRow, GridRow, read_curves, read_grids
from pipeline.store import open_store
from tests.pipeline.stages.finished_forms import (
    BLOCKS,
    FORMS,
    LAYERS,
    SOURCES,
    TARGETS,
    make_run_of_forms,
    write_generation,
    write_grid,
    write_knockout,
)
from tests.pipeline.stages.finished_run import pair_answers, pairs, token_of

CONFIG = EvaluateConfig(bootstrap_samples=20)
PROMPTS = np.arange(16)


def evaluated(folder: Path, name: str) -> LensRows:
    return evaluate_lens(name, open_store(folder / f"lens.zarr/{name}"), CONFIG)


def of_prompts(table: np.ndarray, language: str) -> np.ndarray:
    """(example, layer, block), the probability of each prompt's word in a language."""
    return np.stack([table[row, ..., token_of(row // 2, language)] for row in PROMPTS])


def grid_of(rows: list[GridRow], metric: str, group: str, field: str = "mean") -> np.ndarray:
    cells = [row for row in rows if (row.metric, row.group) == (metric, group)]
    places = [(row.source_layer, row.target_layer) for row in cells]
    assert places == [(source, target) for source in SOURCES for target in TARGETS]
    return np.array([getattr(row, field) for row in cells]).reshape(len(SOURCES), len(TARGETS))


def test_a_grid_has_a_row_for_each_cell(tmp_path: Path) -> None:
    table = write_grid(tmp_path)
    rows = evaluated(tmp_path, "grid")
    answers = [pair_answers(*pair) for pair in pairs()]
    for group in ("source_concept_target_language", "target_concept_en"):
        probability = np.stack([table[row, ..., token_of(*groups[group])] for row, groups in enumerate(answers)])
        assert grid_of(rows.grids, "probability", group) == pytest.approx(probability.mean(0), rel=1e-5)
        assert grid_of(rows.grids, "probability", group, "std") == pytest.approx(probability.std(0, ddof=1), rel=1e-5)
        hit = np.stack([table[row].argmax(-1) == token_of(*groups[group]) for row, groups in enumerate(answers)])
        assert grid_of(rows.grids, "top1_accuracy", group) == pytest.approx(hit.mean(0), rel=1e-9)
    assert (grid_of(rows.grids, "probability", "target_concept_en", "n") == 40).all()
    own, last = table[:, -1, 0].argmax(-1), table[:, -1, -1]
    agrees = table.argmax(-1) == own[:, None, None]
    assert grid_of(rows.grids, "precision_at_1", "") == pytest.approx(agrees.mean(0), rel=1e-9)
    top = table.argmax(-1)  # (example, source layer, target layer)
    surprisal = -np.log(np.stack([last[row][top[row]] for row in range(len(last))]))
    assert grid_of(rows.grids, "surprisal_nats", "") == pytest.approx(surprisal.mean(0), rel=1e-5)
    assert {row.metric for row in rows.curves} == {"baseline_target_probability"}
    assert {row.layer for row in rows.curves} == {-1}
    assert [row.mean for row in rows.curves] == pytest.approx([0.25] * 6)


def test_the_best_cell_of_a_grid_is_in_the_metrics(tmp_path: Path) -> None:
    write_grid(tmp_path)
    rows = evaluated(tmp_path, "grid")
    summary = summarize(rows, examples=40)
    means = grid_of(rows.grids, "probability", "source_concept_target_language")
    assert summary["probability"]["source_concept_target_language"] == {
        "n": 40, "peak": means.max(), "peak_source_layer": SOURCES[-1], "peak_target_layer": TARGETS[-1],
    }  # fmt: skip
    entropy = grid_of(rows.grids, "entropy_bits", "")
    at = np.unravel_index(entropy.argmin(), entropy.shape)
    assert summary["entropy_bits"] == {
        "n": 40, "lowest": entropy.min(), "lowest_source_layer": SOURCES[at[0]], "lowest_target_layer": TARGETS[at[1]],
    }  # fmt: skip
    assert (summary["n"], summary["source_layers"], summary["target_layers"]) == (40, 5, 4)
    assert summary["baseline"]["target"]["target_concept_en"] == pytest.approx(0.25)
    assert "layers" not in summary


def test_a_knock_out_has_a_curve_for_each_block(tmp_path: Path) -> None:
    table = write_knockout(tmp_path)
    rows = evaluated(tmp_path, "knockout").curves
    for group, language in (("answer", "it"), ("latent_en", "en")):
        probability = of_prompts(table, language)
        for index, block in enumerate(BLOCKS):
            curve = [row for row in rows if (row.group, row.block) == (group, block)]
            for metric, wanted in (
                ("probability", probability[..., index].mean(0)),
                ("relative_probability", (probability[..., index] / 0.5).mean(0)),
            ):
                points = [row for row in curve if row.metric == metric]
                assert [row.layer for row in points] == LAYERS
                assert [row.mean for row in points] == pytest.approx(wanted, rel=1e-5), (metric, group, block)
    single = [row for row in rows if row.metric == "precision_at_1" and row.block == "query.all"]
    assert [row.mean for row in single] == pytest.approx((table[:, :, 1].argmax(-1) == 0).mean(0), abs=1e-12)
    unblocked = [row for row in rows if row.metric == "baseline_source_probability"]
    assert {(row.block, row.layer) for row in unblocked} == {("", -1)}
    assert [row.mean for row in unblocked] == pytest.approx([0.5, 0.5])


def test_what_a_block_takes_away_is_in_the_metrics(tmp_path: Path) -> None:
    table = write_knockout(tmp_path)
    summary = summarize(evaluated(tmp_path, "knockout"), examples=16)
    left = (of_prompts(table, "it") / 0.5).mean(0)  # (layer, block)
    for index, block in enumerate(BLOCKS):
        numbers = summary["relative_probability"]["answer"][block]
        assert numbers["lowest"] == pytest.approx(left[:, index].min(), rel=1e-5)
        assert numbers["lowest_layer"] == LAYERS[int(left[:, index].argmin())]
        assert "lowest" in summary["probability"]["answer"][block]
        assert "peak" in summary["kl_nats"][block], "a knock-out moves the distribution most at its peak"
    assert (summary["n"], summary["layers"]) == (16, len(LAYERS))
    assert summary["baseline"]["source"]["answer"] == pytest.approx(0.5)
    assert not {"leading_layers", "crossing_layer"} & set(summary)


def test_generated_texts_that_hold_the_answer(tmp_path: Path) -> None:
    found = write_generation(tmp_path)
    rows = evaluated(tmp_path, "generate").curves
    for index, group in enumerate(("answer", "latent_en")):
        points = [row for row in rows if (row.metric, row.group) == ("generation_accuracy", group)]
        kept = np.delete(PROMPTS, 3) if index else PROMPTS  # one example has no words there
        assert [row.mean for row in points] == pytest.approx(found[kept, :, index].mean(0), rel=1e-9)
        assert {row.n for row in points} == {len(kept)}
    counts = open_store(tmp_path / "lens.zarr/generate").read("num_tokens")
    assert [row.mean for row in rows if row.metric == "generated_tokens"] == pytest.approx(counts.mean(0))
    summary = summarize(LensRows(rows, []), examples=16)
    best = found[..., 0].mean(0)
    assert summary["generation_accuracy"]["answer"]["peak"] == pytest.approx(best.max())
    assert summary["generation_accuracy"]["answer"]["peak_layer"] == LAYERS[int(best.argmax())]


def leaves(value: Any) -> list[Any]:
    return [x for inner in value.values() for x in leaves(inner)] if isinstance(value, dict) else [value]


def test_the_stage_writes_two_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for name in ("one", "another"):
        folder = make_run_of_forms(tmp_path / name)
        monkeypatch.chdir(folder)
        evaluate.run()
        files = ("metrics.json", "curves.parquet", "curves.csv", "grids.parquet", "grids.csv")
        written.append({file: (folder / file).read_bytes() for file in files})
        assert not list(folder.glob(".*.incoming"))
    assert written[0] == written[1]
    metrics = json.loads(Path("metrics.json").read_text())
    assert set(metrics) == {"logit_lens", *FORMS}
    assert all(isinstance(x, int | float) and math.isfinite(x) for x in leaves(metrics))
    assert {row.lens for row in read_grids()} == {"grid"}
    assert {row.lens for row in read_curves()} == {"logit_lens", *FORMS}
    assert {row.lens for row in read_curves() if row.block} == {"knockout"}
    for kind, rows in ((CurveRow, read_curves()), (GridRow, read_grids())):
        file = "curves.csv" if kind is CurveRow else "grids.csv"
        with open(file, encoding="utf-8", newline="") as stream:
            lines = list(csv.DictReader(stream))
        assert [list(line.values()) for line in lines] == [
            ["" if value is None else str(value) for value in row] for row in rows
        ]
        assert list(lines[0]) == list(kind._fields)

"""The stage `evaluate` on a run folder, against numbers computed from the table that the lens store was made from."""

from __future__ import annotations

import csv
import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from omegaconf import OmegaConf

from interp.errors import InterpError
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.section import ConfigError
from pipeline.stages.evaluate import __main__ as evaluate
from pipeline.stages.evaluate.__main__ import LensRows, evaluate_lens, summarize
from pipeline.stages.evaluate.tables import CurveRow, leads, read_curves
from pipeline.store import open_store
from tests.pipeline.stages import finished_run
from tests.pipeline.stages.finished_run import LENSES, NUM_LAYERS, RISES, distributions, make_run, token_of, write_lens

ARTIFACTS = ("metrics.json", "curves.parquet", "curves.csv", "grids.parquet", "grids.csv")
CONFIG = EvaluateConfig(bootstrap_samples=50)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the stage's artifacts."""
    folder = make_run(tmp_path_factory.mktemp("evaluate") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        evaluate.run()
    return folder


@pytest.fixture
def run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the current folder."""
    monkeypatch.chdir(finished)
    return finished


def prompt_lens(folder: Path, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    """A logit lens over sixteen prompts; returns its probabilities (example, layer, token) and the groups' tokens."""
    answers = [{"answer": (row // 2, "it"), "latent_en": (row // 2, "en")} for row in range(16)]
    table = distributions(answers, RISES["logit_lens"], seed=1)
    options = {"model_top": table[:, -1].argmax(-1)} | changes
    write_lens(
        folder, "logit_lens", table, answers, examples="prompts", config=LENSES["logit_lens"],
        labels={"answer": "answer", "latent_en": "English"}, **options,
    )  # fmt: skip
    tokens = np.array([[token_of(*groups[g]) for g in ("answer", "latent_en")] for groups in answers])
    return table, tokens


def rows_of(folder: Path, config: EvaluateConfig = CONFIG) -> dict[tuple[str, str], list[CurveRow]]:
    rows: dict[tuple[str, str], list[CurveRow]] = {}
    for row in evaluate_lens("logit_lens", open_store(folder / "lens.zarr/logit_lens"), config).curves:
        rows.setdefault((row.metric, row.group), []).append(row)
    return rows


def means(rows: list[CurveRow]) -> list[float]:
    return [math.nan if row.mean is None else row.mean for row in rows]


def test_every_metric_follows_from_the_distributions(tmp_path: Path) -> None:
    table, tokens = prompt_lens(tmp_path)
    rows = rows_of(tmp_path)
    top = table.argmax(-1)
    for index, group in enumerate(("answer", "latent_en")):
        probability = table[np.arange(16), :, tokens[:, index]]  # (example, layer)
        better = (table > probability[:, :, None]).sum(-1)
        assert means(rows["probability", group]) == pytest.approx(probability.mean(0), rel=1e-5)
        assert [r.std for r in rows["probability", group]] == pytest.approx(probability.std(0, ddof=1), rel=1e-5)
        assert means(rows["rank", group]) == pytest.approx(better.mean(0), rel=1e-9)
        assert means(rows["top1_accuracy", group]) == pytest.approx((top == tokens[:, [index]]).mean(0), rel=1e-9)
    entropy = -(table * np.log2(table)).sum(-1)
    assert means(rows["entropy_bits", ""]) == pytest.approx(entropy.mean(0), rel=1e-5)
    last = table[:, -1:]
    kl = (last * np.log(last / table)).sum(-1)
    assert means(rows["kl_nats", ""]) == pytest.approx(kl.mean(0), rel=1e-4, abs=1e-6)
    own = table[:, -1]
    assert means(rows["precision_at_1", ""]) == pytest.approx((top == own.argmax(-1)[:, None]).mean(0), rel=1e-9)
    surprisal = -np.log(np.take_along_axis(own, top, axis=1))
    assert means(rows["surprisal_nats", ""]) == pytest.approx(surprisal.mean(0), rel=1e-5)
    assert {len(points) for points in rows.values()} == {NUM_LAYERS}
    assert {row.n for points in rows.values() for row in points} == {16}


def test_entropy_in_nats(tmp_path: Path) -> None:
    prompt_lens(tmp_path)
    bits = means(rows_of(tmp_path)["entropy_bits", ""])
    nats = means(rows_of(tmp_path, EvaluateConfig(entropy_unit="nats", bootstrap_samples=10))["entropy_nats", ""])
    assert nats == pytest.approx(np.array(bits) * math.log(2), rel=1e-8)


def test_an_example_without_the_group_does_not_count(tmp_path: Path) -> None:
    table, tokens = prompt_lens(tmp_path, empty=(3, "latent_en"))
    rows = rows_of(tmp_path)
    kept = np.delete(np.arange(16), 3)
    for metric in ("probability", "rank", "top1_accuracy"):
        assert {row.n for row in rows[metric, "latent_en"]} == {15}
        assert {row.n for row in rows[metric, "answer"]} == {16}
    assert means(rows["probability", "latent_en"]) == pytest.approx(table[kept, :, tokens[kept, 1]].mean(0), rel=1e-5)


def test_what_is_known_for_no_example_has_no_rows_and_for_some_says_n(tmp_path: Path) -> None:
    prompt_lens(tmp_path / "none", model_top=np.full(16, -1))
    rows = rows_of(tmp_path / "none")
    assert ("precision_at_1", "") not in rows
    assert ("surprisal_nats", "") not in rows
    prompt_lens(tmp_path / "some", model_top=np.where(np.arange(16) < 4, 0, -1))
    assert {row.n for row in rows_of(tmp_path / "some")["precision_at_1", ""]} == {4}


def test_overflow_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = finished_run.StoreWriter.write

    def overflow(self: Any, block: int, values: dict[str, np.ndarray]) -> None:
        values["kl"][0, 2] = np.inf
        original(self, block, values)

    monkeypatch.setattr(finished_run.StoreWriter, "write", overflow)
    prompt_lens(tmp_path)
    with caplog.at_level(logging.WARNING, logger="interpipe"):
        rows = rows_of(tmp_path)
    assert [row.n for row in rows["kl_nats", ""]][:4] == [16, 16, 15, 16]
    assert "1 infinite values of kl_nats" in caplog.text


def test_the_files_hold_the_same_rows(run: Path) -> None:
    rows = read_curves(run / "curves.parquet")
    with (run / "curves.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        for name, value in row._asdict().items():
            assert line[name] == ("" if value is None else str(value)), name
    columns = ["lens", "metric", "group", "block", "layer", "mean", "std", "n"]
    columns += ["normal_low", "normal_high", "bootstrap_low", "bootstrap_high"]
    assert parquet.read_table(run / "curves.parquet").column_names == columns
    assert {row.lens for row in rows} == set(LENSES)


def test_baselines_stand_at_layer_minus_one(run: Path) -> None:
    rows = {(r.lens, r.metric, r.group): r for r in read_curves() if r.layer == -1}
    target = rows["patchscope", "baseline_target_probability", "target_concept_target_language"]
    source = rows["patchscope", "baseline_source_probability", "source_concept_source_language"]
    assert (target.mean, source.mean) == pytest.approx((0.7, 0.6), rel=1e-6)
    assert target.n == 40
    assert not any(lens == "logit_lens" for lens, _, _ in rows)


def leaves(value: Any) -> list[Any]:
    return [x for inner in value.values() for x in leaves(inner)] if isinstance(value, dict) else [value]


def test_metrics_are_nested_finite_numbers(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == set(LENSES)
    assert all(isinstance(x, int | float) and math.isfinite(x) for x in leaves(metrics))
    one = metrics["patchscope"]
    assert (one["n"], one["layers"]) == (40, NUM_LAYERS)
    assert one["baseline"]["target"]["target_concept_target_language"] == pytest.approx(0.7, rel=1e-6)


def test_metrics_name_first_last_and_best(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())["patchscope"]
    curves: dict[tuple[str, str], list[float]] = {}
    for row in read_curves():
        if row.lens == "patchscope":
            curves.setdefault((row.metric, row.group), []).append(math.nan if row.mean is None else row.mean)
    for group, numbers in metrics["probability"].items():
        values = curves["probability", group]
        assert numbers == {
            "n": 40, "first": values[0], "last": values[-1], "peak": max(values), "peak_layer": int(np.argmax(values)),
        }  # fmt: skip
    for metric in ("entropy_bits", "kl_nats", "surprisal_nats"):
        values = curves[metric, ""]
        assert metrics[metric]["lowest"] == min(values)
        assert metrics[metric]["lowest_layer"] == int(np.argmin(values))
    by_group = {group: values for (metric, group), values in curves.items() if metric == "probability"}
    stretches = leads(by_group, range(NUM_LAYERS))
    assert [s.group for s in stretches] == [
        "target_concept_target_language", "target_concept_source_language", "source_concept_source_language",
    ]  # fmt: skip
    assert metrics["crossing_layer"] == {
        f"{s.taken_from}__{s.group}": pytest.approx(s.taken_at, rel=1e-9) for s in stretches[1:]
    }
    assert metrics["leading_layers"] == {
        s.group: {"first": s.first_layer, "last": s.last_layer, "count": s.last_layer - s.first_layer + 1}
        for s in stretches
    }


def row(metric: str, layer: int, mean: float | None, group: str = "") -> CurveRow:
    return CurveRow("l", metric, group, "", layer, mean, None, 0 if mean is None else 3, None, None, None, None)


def test_summary_of_a_group_that_nobody_has() -> None:
    summary = summarize(LensRows([row("probability", 0, None, "a"), row("probability", 1, None, "a")], []), examples=3)
    assert summary == {"n": 3, "layers": 2, "probability": {"a": {"n": 0}}}


def test_summary_of_a_group_that_leads_twice_keeps_the_last_crossing() -> None:
    a, b = [0.4, 0.0, 0.4, 0.0], [0.0, 0.4, 0.0, 0.4]
    rows = [
        row("probability", 5 * i, value, group)
        for group, curve in (("a", a), ("b", b))
        for i, value in enumerate(curve)
    ]
    summary = summarize(LensRows(rows, []), examples=3)
    assert summary["crossing_layer"] == {"a__b": 12.5, "b__a": 7.5}
    assert summary["leading_layers"] == {
        "a": {"first": 0, "last": 10, "count": 2}, "b": {"first": 5, "last": 15, "count": 2},
    }  # fmt: skip
    assert summary["probability"]["a"] == {"n": 3, "first": 0.4, "last": 0.0, "peak": 0.4, "peak_layer": 0}


def test_two_folders_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for name in ("one", "another"):
        folder = make_run(tmp_path / name, lenses=("logit_lens", "patchscope"))
        monkeypatch.chdir(folder)
        evaluate.run()
        written.append({f: (folder / f).read_bytes() for f in ARTIFACTS})
        assert not list(folder.glob(".*.incoming"))
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in b"".join(written[0].values())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("entropy_unit", "bit", "Did you mean 'bits'"),
        ("confidence", 95, "between 0 and 1"),
        ("bootstrap_samples", 0, "expected 1 or more"),
    ],
)
def test_a_bad_config_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object, message: str
) -> None:
    OmegaConf.save({"evaluate": {key: value}}, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        evaluate.run()


def test_curves_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match=r"pipeline\.stages\.evaluate"):
        read_curves(tmp_path / "curves.parquet")


def test_the_stage_is_a_command_without_torch(run: Path) -> None:
    """As DVC calls it; and nothing heavy is imported."""
    root = Path(evaluate.__file__).parents[3]
    before = (run / "metrics.json").read_bytes()
    (run / "metrics.json").unlink()
    code = (
        "import runpy, sys; runpy.run_module('pipeline.stages.evaluate', run_name='__main__');"
        "assert not {'torch', 'transformers', 'datasets', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=run, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (run / "metrics.json").read_bytes() == before
    assert json.loads((run / "timings/evaluate.json").read_text())["rows"] > 0

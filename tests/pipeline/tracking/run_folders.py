"""A run folder as a finished run leaves it, small and made by hand."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import OmegaConf

from pipeline.stages.evaluate.tables import CurveRow, write_curves

LAYERS = 4


def make_run_folder(
    folder: Path,
    uri: str,
    *,
    status: str = "FINISHED",
    sweep: dict[str, object] | None = None,
    probability: float = 0.5,
    experiment: str = "tests",
    timeout: int = 15,
) -> Path:
    """Write params.yaml, run.json, metrics.json, curves.parquet, grids.parquet and a report; returns the folder."""
    folder.mkdir(parents=True)
    params = {
        "model": {"name": "tiny", "source": "models/tiny", "depends_on": "x"},
        "task": {"kind": "translation", "source_languages": ["de", "en"], "target_language": "it"},
        "lens": {"patchscope": {"kind": "patchscope", "patch": "one_layer", "batch_size": 4}},
        "report": {"title": "not a parameter"},
        "tracking": {
            "enabled": True,
            "uri": uri,
            "experiment": experiment,
            "tags": {"team": "unit"},
            "timeout": timeout,
        },
    }
    OmegaConf.save(OmegaConf.create(params), folder / "params.yaml")
    unknown = (None, 7, None, None, None, None)  # std, n and the intervals
    rows = [
        CurveRow("patchscope", "probability", group, "", layer, probability * layer / LAYERS, *unknown)
        for group in ("target_concept", "source_concept")
        for layer in range(LAYERS)
    ]
    rows.append(CurveRow("patchscope", "surprisal_nats", "", "", 0, float("nan"), *unknown))
    write_curves(rows, folder)
    (folder / "grids.parquet").write_bytes(b"a table without rows")
    (folder / "metrics.json").write_text(json.dumps({"patchscope": {"n": 7, "probability": {"a": {"peak": 0.75}}}}))
    (folder / "dvc.lock").write_text("schema: '2.0'\n")
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("<h1>a report</h1>")
    (folder / "activations.zarr").mkdir()
    (folder / "activations.zarr" / "tensor").write_bytes(b"must not be uploaded")
    write_run(folder, status, sweep)
    return folder


def write_run(folder: Path, status: str, sweep: dict[str, object] | None = None) -> None:
    """Write the run.json that the driver leaves."""
    run = {
        "format": "interpipe.run/1",
        "status": status,
        "message": None if status == "FINISHED" else "collect: the disk is full",
        "overrides": ["lens=patchscope"],
        "sweep": sweep,
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T03:04:15+00:00",
        "git": {"commit": "0123abc", "branch": "main", "dirty": True},
        "versions": {"torch": "2.13.0"},
        "stages": {"collect": {"cached": False, "seconds": 4.0, "model_seconds": 2.0, "tokens": 100}},
        "outputs": {"tokens/prompts": "a" * 32 + ".dir", "activations.zarr": "b" * 32 + ".dir"},
    }
    (folder / "run.json").write_text(json.dumps(run))

"""What a run says at its end: where its results are, and the few numbers that one looks at first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pipeline.config.tracking import load_tracking_config

CURVES_A_LENS = 3
LENSES = 5


def summary_lines(folder: Path) -> list[str]:
    """The last lines of a run.

    Arguments:
        folder: a finished run folder.

    Returns:
        Where the run and its report are, how to see the tracking, and one line a lens.
    """
    tracking = load_tracking_config(str(folder / "params.yaml"))
    shown = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
    lines = [f"run       {shown}", f"report    {shown}/report/index.html"]
    if tracking.enabled:
        lines.append(f"tracking  {tracking.uri or 'make ui'}, experiment {tracking.experiment}")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    lines += [lens_line(name, numbers) for name, numbers in list(metrics.items())[:LENSES]]
    if len(metrics) > LENSES:
        lines.append(f"... and {len(metrics) - LENSES} lenses more in {shown}/metrics.json")
    return lines


def lens_line(name: str, numbers: dict[str, Any]) -> str:
    """One lens in one line: its likeliest answers, and where it agrees with the model.

    Arguments:
        name: name of the lens.
        numbers: its part of `metrics.json`.
    """
    curves = {group: curve for group, curve in numbers.get("probability", {}).items() if "peak" in curve}
    likeliest = sorted(curves, key=lambda group: -curves[group]["peak"])[:CURVES_A_LENS]
    said = [
        f"P({group}) up to {curves[group]['peak']:.3f} at layer {curves[group]['peak_layer']}" for group in likeliest
    ]
    agreement = numbers.get("precision_at_1", {})
    if not said and "peak" in agreement:
        said = [f"precision at 1 up to {agreement['peak']:.3f} at layer {agreement['peak_layer']}"]
    return f"{name} ({numbers.get('n', 0)} examples): {', '.join(said) or 'see metrics.json'}"

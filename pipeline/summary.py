"""Print the end of a run: the places of its results, and the few numbers that one looks at first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pipeline.config.lens import load_lenses
from pipeline.config.section import load
from pipeline.config.tracking import TrackingConfig, masked
from pipeline.metrics import METRICS
from pipeline.project import CODE, find_project

CURVES_A_LENS = 3
LENSES = 5


def summary_lines(folder: Path, standing: Path | None = None) -> list[str]:
    """The last lines of a run.

    Arguments:
        folder: a finished run folder.
        standing: where the user stands; None: here.

    Returns:
        Where the run and its report are, how to see the tracking, and one line a lens, or what there is without one.
    """
    tracking = load(TrackingConfig, str(folder / "params.yaml"))
    standing = standing or Path.cwd()
    shown = os.path.relpath(folder, standing) if folder.is_relative_to(standing) else str(folder)
    lines = [f"run       {shown}", f"report    {shown}/report/index.html"]
    if tracking.enabled:
        page = "make ui" if find_project(folder) == CODE else "interpipe ui"
        lines.append(f"tracking  {masked(tracking.uri or page)}, experiment {tracking.experiment}")
    if not load_lenses(str(folder / "params.yaml")):
        lines.append(f"collected {shown}/activations.zarr; no lens was asked for")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    lines += [lens_line(name, numbers) for name, numbers in list(metrics.items())[:LENSES]]
    if len(metrics) > LENSES:
        lines.append(f"... and {len(metrics) - LENSES} lenses more in {shown}/metrics.json")
    return lines


def lens_line(name: str, numbers: dict[str, Any]) -> str:
    """One lens in one line: its likeliest answers, what blocking takes away, or where it agrees with the model.

    Arguments:
        name: name of the lens.
        numbers: its part of `metrics.json`.
    """
    said = _knocked_out(numbers.get("relative_probability", {}))
    said = said or _highest(numbers.get("probability", {}), METRICS["probability"].headline)
    written = numbers.get("generation_accuracy", {})
    said = said or _highest(written, METRICS["generation_accuracy"].headline)
    said = said or (["no text holds an answer"] if written else [])
    agreement = numbers.get("precision_at_1", {})
    if not said and "peak" in agreement:
        said = _highest({"": agreement}, METRICS["precision_at_1"].headline)
    return f"{name} ({numbers.get('n', 0)} examples): {', '.join(said) or 'see metrics.json'}"


def _highest(curves: dict[str, dict[str, Any]], name: str) -> list[str]:
    """The highest of some curves or grids, and where."""
    known = sorted((curve for curve in curves.items() if curve[1].get("peak")), key=lambda curve: -curve[1]["peak"])
    return [
        f"{name.format(group)} up to {curve['peak']:.3f} {_place(curve, 'peak')}"
        for group, curve in known[:CURVES_A_LENS]
    ]


def _knocked_out(groups: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """What the blocks leave of the first group's probability."""
    group, blocks = next(iter(groups.items()), ("", {}))
    known = sorted((block for block in blocks.items() if "lowest" in block[1]), key=lambda block: block[1]["lowest"])
    of = METRICS["relative_probability"].headline.format(group)
    return [
        f"without {block} {curve['lowest']:.3f} of {of} {_place(curve, 'lowest')}"
        for block, curve in known[:CURVES_A_LENS]
    ]


def _place(curve: dict[str, Any], word: str) -> str:
    if f"{word}_source_layer" in curve:
        return f"from layer {curve[f'{word}_source_layer']} into layer {curve[f'{word}_target_layer']}"
    return f"at layer {curve[f'{word}_layer']}"

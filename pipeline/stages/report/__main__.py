"""Stage `report`: make one self-contained page about a run, and its figures.

    python -m pipeline.stages.report          # in a run folder

Reads the sections `model`, `task`, `collect`, `tune`, `lens`, `evaluate` and `report` of `params.yaml`, `tokens/`,
`activations.zarr`, `lens.zarr`, `curves.parquet` and `grids.parquet`; writes `report/index.html`,
`report/figures/LENS.svg` (or `.pdf`, `.png`), and `report/figures/compared/1.svg` where lenses can be compared.
The page loads nothing and runs no script; what is shown of prompts, tokens and generated text is escaped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from interp import __version__
from interp.errors import InterpError, nearest
from interp.plots import save_figure
from interp.text import readable
from pipeline.artifacts.tokens import Tokens, load_tokens
from pipeline.config.evaluate import EvaluateConfig, ReportConfig
from pipeline.config.lens import load_lenses
from pipeline.config.section import load, load_section
from pipeline.config.task import TaskConfig
from pipeline.files import digest_of, publish
from pipeline.stages.common import code_digests, stage_main
from pipeline.stages.evaluate.tables import read_curves, read_grids
from pipeline.stages.report.page import Page, figure_of_comparison, figure_of_lens, render
from pipeline.stages.report.sections import (
    generation_grid_section,
    generation_section,
    grid_section,
    knockout_section,
    readings_section,
)
from pipeline.stages.report.source import LensSection, Source, axis_top, comparisons
from pipeline.stages.report.words import describe_task, readable_value
from pipeline.store import Store, open_store

__all__ = ["run"]

STAGES = ("tokenize", "collect", "tune", "lens", "evaluate", "report")
# Not `tracking`, which may hold a password.
SECTIONS = ("model", "task", "collect", "tune", "lens", "evaluate", "report")
MODEL_FACTS = ("name", "source", "revision", "dtype", "attention_implementation")
INTERVALS = {"normal": "normal", "bootstrap": "percentile bootstrap"}
COMMANDS = (
    ("In this run’s folder, compute again what has changed, or with --force everything:", "dvc repro"),
    (
        "With this page alone: save the config below as params.yaml in a folder, and run in the repository, with that "
        "folder for FOLDER:",
        "python -m pipeline --config-dir FOLDER --config-name params +hydra=default +store=default +tracking=default",
    ),
)


def run() -> dict[str, float]:
    """Run the stage in the current folder."""
    config, statistics = load(ReportConfig), load(EvaluateConfig)
    tokens, curves, grids = load_tokens(), read_curves(), read_grids()
    sources, sections, model = [], [], {}
    for name, lens in load_lenses().items():
        store = open_store(f"lens.zarr/{name}")
        source = Source(
            name=name,
            config=lens,
            store=store,
            curves=[row for row in curves if row.lens == name],
            grids=[row for row in grids if row.lens == name],
            tokens=tokens,
            interval=config.interval,
            top=axis_top(curves),
            num_examples=config.examples,
        )
        if not source.curves and not source.grids:
            known = {row.lens for row in curves} | {row.lens for row in grids}
            raise InterpError(
                f"curves.parquet has no lens {name!r}.{nearest(name, known)} It was "
                "made for another config: run `dvc repro` in the run folder."
            )
        model = store.attributes.get("model", {})
        sources.append(source)
        sections.append(lens_section(source))
    compared = comparisons(sources)
    activations = open_store("activations.zarr")
    page = _page(config, statistics, tokens, sections, model or activations.attributes.get("model", {}), activations)
    with tempfile.TemporaryDirectory() as scratch:
        finished = Path(scratch) / "report"
        finished.mkdir()
        (finished / "index.html").write_text(render(page, sections, compared), encoding="utf-8", newline="\n")
        for section in sections:
            save_figure(figure_of_lens(section), finished / "figures" / f"{section.name}.{config.figure_format}")
        for number, comparison in enumerate(compared, start=1):
            path = finished / "figures" / "compared" / f"{number}.{config.figure_format}"
            save_figure(figure_of_comparison(comparison), path)
        publish(finished, "report")
    return {"lenses": float(len(sections))}


def lens_section(source: Source) -> LensSection:
    """All that the report says about one lens, by what its numbers stand over."""
    if "token_ids" in source.store.arrays:
        crossed = len(source.store.dimensions("num_tokens")) == 3  # (example, source layer, target layer)
        return generation_grid_section(source) if crossed else generation_section(source)
    axes = source.store.dimensions("entropy")[1:]
    if axes == ("source_layer", "target_layer"):
        return grid_section(source)
    if axes == ("layer", "block"):
        return knockout_section(source)
    return readings_section(source)


def _page(
    config: ReportConfig,
    statistics: EvaluateConfig,
    tokens: Tokens,
    sections: Sequence[LensSection],
    model: Mapping[str, Any],
    activations: Store,
) -> Page:
    """What the page says beside its lenses."""
    params = {name: load_section(name) for name in SECTIONS}
    counts = _flat(tokens.manifest["counts"])
    digests = {
        "model": model.get("digest"),
        "tokenizer": tokens.manifest.get("tokenizer_digest"),
        "prompts": tokens.manifest.get("prompts_digest"),
        "prompts, targets and pairs": tokens.manifest.get("data_digest"),
        "code of all stages": digest_of(code_digests(STAGES)),
    }
    return Page(
        title=readable(config.title),
        lede=readable(_lede(params["model"], load(TaskConfig), len(sections))),
        highlights=[
            ("Model", readable(f"{params['model']['name']}, {params['model']['dtype']}")),
            *(_measured(sections, statistics, config) if sections else [("Collected", ", ".join(activations.arrays))]),
            *_noted(tokens),
        ],
        facts=[
            ("Model", _facts({key: params["model"].get(key) for key in MODEL_FACTS})),
            ("Task", _facts({key: value for key, value in params["task"].items() if key != "depends_on"})),
            ("Data", _facts({**_read_as(tokens), **counts, "tokens in prompts": tokens.manifest["tokens"]})),
            *_notes(tokens),
            ("Collected", _collected(activations)),
        ],
        digests=[(name, str(digest)) for name, digest in digests.items() if digest],
        commands=COMMANDS,
        config=readable(OmegaConf.to_yaml(OmegaConf.create(params))),
        confidence=statistics.confidence,
        interval=INTERVALS[config.interval],
        entropy_unit=statistics.entropy_unit,
        figure_format=config.figure_format,
        version=__version__,
    )


def _measured(
    sections: Sequence[LensSection], statistics: EvaluateConfig, config: ReportConfig
) -> list[tuple[str, str]]:
    """The facts under the title of a run with lenses."""
    return [
        ("Layers measured", ", ".join(dict.fromkeys(section.layers_text for section in sections))),
        ("Examples", ", ".join(dict.fromkeys(f"{s.num_examples} {s.unit}" for s in sections))),
        ("Intervals", f"{100 * statistics.confidence:g} %, {INTERVALS[config.interval]}"),
    ]


def _collected(activations: Store) -> list[tuple[str, str]]:
    """What `activations.zarr` holds: each kind of site with its layers, its shape and its dtype."""
    rows = []
    for kind in activations.arrays:
        layers = [layer for layer in activations.attributes.get("sites", {}).get(kind, []) if layer is not None]
        named = f"layers {layer_ranges(layers)}; " if layers else ""
        sizes = zip(activations.dimensions(kind), activations.shape(kind), strict=True)
        shape = " × ".join(f"{size} {dimension}" for dimension, size in sizes)
        rows.append((readable(kind), f"{named}{shape}; {activations.dtype(kind)}"))
    positions = activations.attributes.get("position_names", [])
    return [*rows, ("positions", readable(", ".join(positions)))] if positions else rows


def layer_ranges(layers: Sequence[int]) -> str:
    """Layers as ranges, ascending: `0–3, 7`."""
    ranges: list[list[int]] = []
    for layer in sorted(layers):
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in ranges)


def _lede(model: Mapping[str, Any], task: TaskConfig, num_lenses: int) -> str:
    """The experiment in one sentence."""
    what = describe_task(task)
    if not num_lenses:
        return f"Activations of {model['name']} on {what}; no lens was asked for."
    lenses = "one lens" if num_lenses == 1 else f"{num_lenses} lenses"
    return f"What {model['name']} knows at each layer about {what}, seen through {lenses}."


def _read_as(tokens: Tokens) -> dict[str, str]:
    return {"file read as": tokens.manifest["read_as"]} if tokens.manifest["read_as"] else {}


def _notes(tokens: Tokens) -> list[tuple[str, list[tuple[str, str]]]]:
    """What stage `tokenize` found odd about the data."""
    notes = [(note["what"], "; ".join([str(note["count"]), *note["examples"]])) for note in tokens.manifest["notes"]]
    return [("Noted in the data", [(readable(what), readable(told)) for what, told in notes])] if notes else []


def _noted(tokens: Tokens) -> list[tuple[str, str]]:
    """What of the notes stands under the title, where a reader begins."""
    notes, counts = tokens.manifest["notes"], tokens.manifest["counts"]
    lost = f"{counts['rows_left_out']} of {counts['rows']} rows left out; " if counts.get("rows_left_out") else ""
    kinds = f"{len(notes)} note{'' if len(notes) == 1 else 's'} under What was run"
    return [("Data", lost + kinds)] if notes else []


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested counts with their names joined by a comma."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}, {key}" if prefix else str(key)
        flat |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return flat


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(readable(key.replace("_", " ")), readable(readable_value(value))) for key, value in values.items()]


if __name__ == "__main__":
    stage_main("report", run)

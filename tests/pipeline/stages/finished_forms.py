"""Lens stores whose numbers stand over more than layers: a grid, generated texts, blocks. Made up, and known.

They join a run folder of `finished_run`, and follow from its tables of probabilities (example, cell, token).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from pipeline.store import ArraySpec, StoreWriter
from tests.pipeline.stages.finished_run import (
    CONCEPTS,
    GROUP_LABELS,
    PAIR_GROUPS,
    PROMPT_GROUPS,
    SCRIPT,
    VOCABULARY,
    make_run,
    pair_answers,
    pairs,
    token_of,
)

SOURCES, TARGETS = [0, 1, 2, 4, 5], [0, 2, 3, 5]
LAYERS = [0, 1, 3, 4]
BLOCKS = ["first", "query.all", "before_query"]
INTO = {
    "source_position": "last", "target": "task", "target_prompt": "cat", "target_position": "last", "sources": "first",
    "batch_size": 64,
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "grid": {"kind": "patchscope_grid", **INTO, "source_layers": "0-2,4-5", "target_layers": "0,2-3,5", "top_k": 1},
    "generate": {
        "kind": "patchscope_generate", **INTO, "target": "identity", "patch": "one_layer", "layers": "0-1,3-4",
        "max_new_tokens": 4, "temperature": 0.0, "seed": 0,
    },
    "knockout": {
        "kind": "knockout", "blocks": BLOCKS, "query_position": "last", "layers": "0-1,3-4", "window": 3,
        "centred": False, "top_k": 2, "batch_size": 64,
    },
}  # fmt: skip
TEXTS = ["", " caffè e pane", f"{SCRIPT}\nIl Libro ", "\u202ereversed"]


def make_run_of_forms(folder: Path, lenses: tuple[str, ...] = ("logit_lens",), **options: Any) -> Path:
    """A run folder before `evaluate`, with some lenses of `finished_run` and the three forms; see `make_run`."""
    make_run(folder, lenses=lenses, **options)
    params = OmegaConf.load(folder / "params.yaml")
    params.lens = {**params.lens, **FORMS}
    OmegaConf.save(params, folder / "params.yaml")
    write_grid(folder)
    write_generation(folder)
    write_knockout(folder)
    return folder


def write_grid(folder: Path, sources: list[int] = SOURCES, targets: list[int] = TARGETS) -> np.ndarray:
    """Write the store `grid` over the pairs; returns the probabilities (example, source layer, target layer, token)."""
    answers = [pair_answers(*pair) for pair in pairs()]
    table = _table(len(answers), (len(sources), len(targets)), seed=1)
    rise = np.linspace(0, 0.9, len(sources) * len(targets)).reshape(len(sources), len(targets))
    for example, groups in enumerate(answers):  # the source's concept rises with the layers
        token = token_of(*groups["source_concept_target_language"])
        table[example] *= (1 - rise)[..., None]
        table[example, ..., token] += rise
    model_top = table[:, -1, 0].argmax(-1)
    arrays = _readings(table, answers, PAIR_GROUPS, top_k=1, model_top=model_top, last=table[:, -1, -1])
    arrays["baseline_target_log_prob"] = np.full((len(answers), len(PAIR_GROUPS)), np.log(0.25), dtype=np.float32)
    axes = {"source_layer": sources, "target_layer": targets}
    _write(folder, "grid", "pairs", PAIR_GROUPS, axes, arrays, {"top_k": 1})
    return table


def write_knockout(folder: Path) -> np.ndarray:
    """Write the store `knockout` over the prompts; returns the probabilities (example, layer, block, token)."""
    answers = _prompt_answers()
    table = _table(len(answers), (len(LAYERS), len(BLOCKS)), seed=2)
    arrays = _readings(
        table, answers, PROMPT_GROUPS, top_k=2, model_top=np.zeros(len(answers), int), last=table[:, 0, 0]
    )
    unblocked = np.full((len(answers), len(PROMPT_GROUPS)), np.log(0.5), dtype=np.float32)
    arrays["baseline_source_log_prob"] = unblocked
    _write(folder, "knockout", "prompts", PROMPT_GROUPS, {"layer": LAYERS, "block": BLOCKS}, arrays, {"top_k": 2})
    return table


def write_generation(folder: Path) -> np.ndarray:
    """Write the store `generate` over the prompts; returns which texts hold the answer (example, layer, group)."""
    answers = _prompt_answers()
    generator = np.random.default_rng(3)
    counts = generator.integers(0, 5, (len(answers), len(LAYERS))).astype(np.int32)
    ids = generator.integers(0, len(VOCABULARY), (len(answers), len(LAYERS), 4)).astype(np.int32)
    ids[np.arange(4) >= counts[..., None]] = -1
    found = generator.integers(0, 2, (len(answers), len(LAYERS), len(PROMPT_GROUPS))).astype(np.int8)
    found[3, :, 1] = -1  # an example whose second group has no words
    arrays = {"token_ids": ids, "num_tokens": counts, "answer_found": found}
    texts = [[TEXTS[(example + layer) % len(TEXTS)] for layer in range(len(LAYERS))] for example in range(len(answers))]
    _write(folder, "generate", "prompts", PROMPT_GROUPS, {"layer": LAYERS}, arrays, {"texts": texts})
    return found


def _prompt_answers() -> list[dict[str, tuple[int, str]]]:
    return [{"answer": (row // 2, "it"), "latent_en": (row // 2, "en")} for row in range(2 * len(CONCEPTS))]


def _table(examples: int, cells: tuple[int, ...], seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 2, (examples, *cells, len(VOCABULARY)))
    exponent = np.exp(logits)
    return exponent / exponent.sum(-1, keepdims=True)


def _readings(
    table: np.ndarray, answers: list[dict[str, tuple[int, str]]], groups: list[str], *, top_k: int,
    model_top: np.ndarray, last: np.ndarray,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The arrays of a lens that reads a distribution in each cell."""
    tokens = np.array([[token_of(*row[group]) for group in groups] for row in answers])
    wanted = tokens.reshape(len(answers), *[1] * (table.ndim - 2), len(groups))
    wanted = np.broadcast_to(wanted, (*table.shape[:-1], len(groups)))
    order = np.argsort(-table, axis=-1, kind="stable")
    reference = last.reshape(len(answers), *[1] * (table.ndim - 2), -1)
    own = np.take_along_axis(np.broadcast_to(reference, table.shape), order[..., :1], -1)[..., 0]
    return {
        "log_prob": np.log(np.take_along_axis(table, wanted, -1)).astype(np.float32),
        "rank": np.take_along_axis(np.argsort(order, axis=-1), wanted, -1).astype(np.int32),
        "top_ids": order[..., :top_k].astype(np.int32),
        "top_log_prob": np.log(np.take_along_axis(table, order[..., :top_k], -1)).astype(np.float32),
        "entropy": -(table * np.log(table)).sum(-1).astype(np.float32),
        "kl": (reference * np.log(reference / table)).sum(-1).astype(np.float32),
        "surprisal": -np.log(own).astype(np.float32),
        "model_top_id": model_top.astype(np.int32),
    }


DIMENSIONS = {
    "log_prob": ("group",), "rank": ("group",), "top_ids": ("top",), "top_log_prob": ("top",),
    "answer_found": ("group",), "token_ids": ("token",),
}  # fmt: skip
OF_EXAMPLES = {
    "model_top_id": (), "baseline_source_log_prob": ("group",), "baseline_target_log_prob": ("group",),
}  # fmt: skip


def _write(
    folder: Path, name: str, examples: str, groups: list[str], axes: dict[str, list[Any]],
    arrays: dict[str, np.ndarray], more: dict[str, Any],
) -> None:  # fmt: skip
    def dimensions(array: str) -> tuple[str, ...]:
        own = OF_EXAMPLES.get(array)
        return ("example", *own) if own is not None else ("example", *axes, *DIMENSIONS.get(array, ()))

    count = len(arrays[next(iter(arrays))])
    writer = StoreWriter(
        folder / "lens.zarr" / name,
        [ArraySpec(key, dimensions(key), value.shape, value.dtype.name) for key, value in arrays.items()],
        unit="example",
        block_size=16,
        attributes={
            "format": "interpipe.lens/1",
            "name": name,
            "kind": FORMS[name]["kind"],
            "examples": examples,
            **{f"{axis}s": values for axis, values in axes.items()},
            "groups": groups,
            "group_labels": {group: GROUP_LABELS[group] for group in groups},
            "units": "nats",
            "vocabulary": {str(token): text for token, text in enumerate(VOCABULARY)},
            "config": FORMS[name],
            "model": {"name": "demo", "source": "pipeline/demo/model", "revision": None, "digest": "d" * 64},
            **more,
        },
        static={"row": (("example",), np.arange(count, dtype=np.int32))},
    )
    for block, rows in enumerate(writer.blocks):
        writer.write(block, {key: value[rows.start : rows.stop] for key, value in arrays.items()})
    writer.finish()

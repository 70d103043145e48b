"""Run folders of a tiny model that stand before the stage `lens`, and reading what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from pipeline.artifacts.tokens import Pair, Row, TaskData
from pipeline.project import MARKER
from pipeline.stages import collect
from pipeline.stages.lens import __main__ as lens
from pipeline.stages.tokenize import write_tokens
from pipeline.store import Store

PROMPT_GROUPS = {"answer": "concept in it", "latent_en": "concept in en"}
PAIR_GROUPS = {"target_concept": "target concept", "source_concept": "source concept"}


def row(ids: list[int], query: tuple[int, int], concept: int, collides: str = "no") -> Row:
    answers = {"answer": [20 + concept, 30 + concept], "latent_en": [40 + concept]}
    labels = {"concept": str(concept), "collides": collides}
    return Row(f"prompt {ids}", ids, {"query": query}, labels, answers, {group: ["word"] for group in answers})


def pair(sources: list[int], target: int, concept: int) -> Pair:
    answers = {"target_concept": [50 + target], "source_concept": [60 + concept, 70 + concept]}
    return Pair(sources, target, {}, answers, {group: ["word"] for group in answers})


PROMPTS = [
    row([1, 100, 101, 102, 103], (1, 3), 0),
    row([1, 110, 111, 112], (2, 3), 0),
    row([1, 120, 121, 122, 123, 124], (1, 4), 1),
    row([1, 130, 131], (1, 2), 1, collides="yes"),
    row([1, 140, 141, 142, 143], (2, 4), 2),
    row([1, 150, 151, 152], (1, 2), 2),
]
TARGETS = [row([1, 200, 201, 202, 203], (2, 3), 5), row([1, 210, 211, 212, 213, 214, 215], (1, 5), 6)]
PAIRS = [pair([0, 1], 0, 0), pair([0, 1], 1, 0), pair([2, 3], 0, 1), pair([4, 5], 1, 2), pair([4, 5], 0, 2)]
TASK = TaskData(PROMPTS, TARGETS, PAIRS, {"prompts": 6}, {**PROMPT_GROUPS, **PAIR_GROUPS})


def isolate(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project of the test's own, so that scratch folders stay in its folder; and small blocks."""
    (root / MARKER).touch()
    monkeypatch.setattr(lens, "BLOCK_SIZE", 2)


def make_run(
    folder: Path,
    source: Path,
    lenses: Mapping[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    *,
    task: TaskData = TASK,
    **section_of_collect: Any,
) -> Path:
    """Make a run folder that stands before the stage, and go there.

    Arguments:
        folder: the run folder.
        source: folder of the model.
        lenses: the section `lens`.
        monkeypatch: goes there.
        task: the prompts, targets and pairs.
        section_of_collect: keys of the section `collect` that differ.
    """
    folder.mkdir()
    monkeypatch.chdir(folder)
    params = {
        "model": {"name": source.name, "source": str(source), "device_map": "cpu", "depends_on": str(source)},
        "collect": {"sites": ["resid_post.*"], "positions": ["last", "query.last"], **section_of_collect},
        "lens": dict(lenses),
        "store": {},
    }
    OmegaConf.save(params, folder / "params.yaml")
    write_tokens(task, "tokens", kind="translation", tokenizer_digest="0" * 64)
    collect.main()
    return folder


def change(section: str, values: dict[str, Any]) -> None:
    """Replace a section of the current run folder's config."""
    params = OmegaConf.load("params.yaml")
    params[section] = values
    OmegaConf.save(params, "params.yaml")


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def arrays(store: Store) -> dict[str, np.ndarray]:
    return {name: store.read(name) for name in store.arrays}

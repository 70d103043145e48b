"""Generation from each source layer in each target layer: the store, the tables and the page, against the slow twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from torch import Tensor

from interp.model import StandardizedTransformer
from interp.text import readable
from pipeline.artifacts.tokens import TaskData
from pipeline.stages.evaluate import __main__ as evaluate
from pipeline.stages.evaluate.tables import read_grids
from pipeline.stages.lens import __main__ as lens
from pipeline.stages.lens.inputs import evenly
from pipeline.stages.report import __main__ as report
from pipeline.store import StoreWriter, open_store
from tests.interp.lenses.twins import HookTwin
from tests.pipeline.stages.lens.lens_run import PAIRS, PROMPTS, TARGETS, TASK, files, isolate, make_run
from tests.pipeline.stages.lens.test_mapping import mapped, write_tuned_lens
from tests.pipeline.stages.page import parse
from tests.tiny import tiny_tokenizer

SOURCES, INTO, TOKENS = [0, 2], [1, 2, 3], 3
GRID = {
    "kind": "patchscope_generate", "target": "task", "target_position": "query.last", "layers": "0,2",
    "target_layers": "1-3", "max_new_tokens": TOKENS, "batch_size": 2,
}  # fmt: skip
Enter = Callable[..., Path]


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    isolate(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def enter(repository: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Enter:
    """`enter(section, ...)`: a run folder that stands before the stage, with one lens."""

    def make(section: Mapping[str, Any], task: TaskData = TASK, name: str = "run") -> Path:
        folder = make_run(repository / name, model_folder("llama"), {"cross": section}, monkeypatch, task=task)
        write_tuned_lens(StandardizedTransformer(model_folder("llama"), dtype="float32", device_map="cpu"), "pairs")
        return folder

    return make


@pytest.fixture(scope="module")
def twin() -> HookTwin:
    return HookTwin("llama")


def written(twin: HookTwin, ids: Sequence[int], position: int, states: dict[int, Tensor]) -> list[int]:
    """The most probable tokens, one whole forward pass for each."""
    new: list[int] = []
    while len(new) < TOKENS and twin.model.generation_config.eos_token_id not in new:
        new.append(int(twin.logits([*ids, *new], position, states).argmax()))
    return new


def by_hand(twin: HookTwin, kind: str) -> list[list[list[list[int]]]]:
    """[pair][source layer][target layer], the new tokens."""
    found = []
    for pair in PAIRS:
        source, target = PROMPTS[pair.sources[0]], TARGETS[pair.target]
        states = twin.residuals(source.input_ids)[:, -1]
        position = target.spans["query"][1] - 1
        found.append([
            [written(twin, target.input_ids, position, {to: mapped(kind, states[at], at, to)}) for to in INTO]
            for at in SOURCES
        ])  # fmt: skip
    return found


def padded(ids: Sequence[Sequence[Sequence[Sequence[int]]]]) -> list[Any]:
    return [[[[*new, *[-1] * (TOKENS - len(new))] for new in row] for row in rows] for rows in ids]


@pytest.mark.parametrize("kind", ["identity", "affine_last", "affine_target", "tuned"])
def test_each_source_layer_is_written_into_each_target_layer(kind: str, enter: Enter, twin: HookTwin) -> None:
    enter({**GRID, "mapping": kind})
    measured = lens.run()
    store, wanted = open_store("lens.zarr/cross", verify=True), by_hand(twin, kind)
    assert store.read("token_ids").tolist() == padded(wanted)
    assert store.read("num_tokens").tolist() == [[[len(new) for new in row] for row in rows] for rows in wanted]
    tokenizer = tiny_tokenizer()
    assert store.attributes["texts"] == [
        [[tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False) for new in row]
         for row in rows]
        for rows in wanted
    ]  # fmt: skip
    assert store.dimensions("answer_found") == ("example", "source_layer", "target_layer", "group")
    assert (store.attributes["source_layers"], store.attributes["target_layers"]) == (SOURCES, INTO)
    assert measured["tokens"] == sum(6 * (len(TARGETS[pair.target].input_ids) + TOKENS) for pair in PAIRS)


def test_layers_are_bounded_and_evenly_spread(enter: Enter, twin: HookTwin) -> None:
    enter({**GRID, "layers": "*", "target_layers": "*", "max_layers": 2})
    lens.run()
    store = open_store("lens.zarr/cross")
    assert store.attributes["source_layers"] == store.attributes["target_layers"] == [0, 3]
    assert evenly(range(32), 8) == [0, 4, 9, 13, 18, 22, 27, 31]
    assert evenly(range(3), 8) == evenly(range(3), None) == [0, 1, 2]
    assert evenly(range(32), 1) == [0]


def test_draws_are_of_their_example_and_layers_alone(enter: Enter) -> None:
    drawn = {**GRID, "temperature": 5.0}
    enter(drawn)
    lens.run()
    whole = open_store("lens.zarr/cross").read("token_ids")
    enter({**drawn, "layers": "2", "target_layers": "3"}, name="part")
    lens.run()
    np.testing.assert_array_equal(open_store("lens.zarr/cross").read("token_ids"), whole[:, 1:, 2:])
    enter({**drawn, "seed": 1}, name="other")
    lens.run()
    assert (open_store("lens.zarr/cross").read("token_ids") != whole).any()
    assert len({tuple(cell) for cell in whole[0].reshape(6, TOKENS).tolist()}) > 1, "cells do not share their draws"


def test_a_killed_run_goes_on_and_leaves_the_same_bytes(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    section = {**GRID, "temperature": 1.0, "mapping": "affine_target"}
    undisturbed = enter(section, name="undisturbed")
    lens.run()
    killed = enter(section, name="killed")
    write = StoreWriter.write
    done: list[int] = []

    def write_once(writer: StoreWriter, block: int, values: Mapping[str, np.ndarray]) -> None:
        if done:
            raise KeyboardInterrupt
        write(writer, block, values)
        done.append(block)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreWriter, "write", write_once)
        lens.run()
    lens.run()
    assert files(killed / "lens.zarr") == files(undisturbed / "lens.zarr")


def test_tables_and_page(enter: Enter, twin: HookTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first group's words are what stands in the cell (2, 1) of every pair; the other has none."""
    tokenizer = tiny_tokenizer()
    wanted = by_hand(twin, "identity")
    texts = [
        [[tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False) for new in row]
         for row in rows]
        for rows in wanted
    ]  # fmt: skip
    pairs = [
        replace(pair, words={"target_concept": [rows[1][0].strip() or "?"], "source_concept": []})
        for pair, rows in zip(PAIRS, texts, strict=True)
    ]
    folder = enter(GRID, replace(TASK, pairs=pairs))
    lens.run()
    params = OmegaConf.load("params.yaml")
    params.model.dtype = "float32"
    params.task = {"kind": "attribute_extraction", "source": "a.jsonl", "depends_on": "a.jsonl"}
    params.evaluate, params.report, params.tune = {"bootstrap_samples": 20}, {"examples": 2}, {"kind": "off"}
    OmegaConf.save(params, "params.yaml")
    evaluate.run()
    found = open_store("lens.zarr/cross").read("answer_found")[..., 0]
    bare = [["".join(text.split()).casefold() for text in row] for rows in texts for row in rows]
    answers = ["".join(pair.words["target_concept"][0].split()).casefold() for pair in pairs]
    hits = [[[int(answers[n] in bare[2 * n + s][t]) for t in range(3)] for s in range(2)] for n in range(len(pairs))]
    assert found.tolist() == hits
    assert np.mean(hits, axis=0)[1, 0] == 1.0
    rows = [row for row in read_grids() if row.metric == "generation_accuracy"]
    by_cell = {(row.group, row.source_layer, row.target_layer): (row.mean, row.n) for row in rows}
    for (s, t), mean in np.ndenumerate(np.mean(hits, axis=0)):
        assert by_cell["target_concept", SOURCES[s], INTO[t]] == (pytest.approx(mean), len(pairs))
        assert by_cell["source_concept", SOURCES[s], INTO[t]] == (None, 0)
    report.run()
    page = parse(folder / "report/index.html")
    tables = page.all("table", "texts")
    assert len(tables) == 2, "one of each example that is shown"
    shown = [[cell.all("bdi")[0].text for cell in line.all("td")] for line in tables[0].all("tr")[1:]]
    assert shown == [[readable(text) for text in texts[0][s]] for s in (1, 0)], "the last source layer first"
    dots = [[bool(cell.all("i", "dot")) for cell in line.all("td")] for line in tables[0].all("tr")[1:]]
    assert dots == [[bool(hit) for hit in hits[0][s]] for s in (1, 0)]
    maps = page.all("svg", "grid-map")
    assert len(maps) == 2, "of the group that has words, and of the number of tokens"
    assert (folder / "report/figures/cross.svg").is_file()

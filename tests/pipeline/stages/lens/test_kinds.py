"""Grid, generation, attention-object and knock-out: what the stage stores, against the slow twins; and after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import InterpError
from pipeline.artifacts.tokens import Row, TaskData, load_tokens
from pipeline.stages.lens import __main__ as lens
from pipeline.store import StoreWriter, open_store
from tests.interp.lenses.attention_twins import cut_logits, received_logits
from tests.interp.lenses.twins import HookTwin, assert_equal, expected, log_softmax
from tests.pipeline.stages.lens.lens_run import PAIRS, PROMPTS, TARGETS, TASK, arrays, files, isolate, make_run
from tests.tiny import NUM_LAYERS, tiny_tokenizer

TOP_K = 2
KEPT = [0, 1, 2, 4, 5]  # prompt 3 collides
GRID = {
    "kind": "patchscope_grid", "source_layers": "0,2-3", "target_layers": "1-2", "target_position": "query.last",
    "top_k": TOP_K, "batch_size": 2,
}  # fmt: skip
GENERATE = {
    "kind": "patchscope_generate", "target": "identity", "target_prompt": "cat", "layers": "0,2-3", "max_new_tokens": 4,
    "batch_size": 2,
}  # fmt: skip
OBJECT = {
    "kind": "attention_object", "source_position": "query.last", "target_position": "query.last", "layers": "0-2",
    "window": 2, "top_k": TOP_K, "batch_size": 2,
}  # fmt: skip
KNOCKOUT = {
    "kind": "knockout", "blocks": ["first", "query.all", "before_query"], "layers": "0,2-3", "window": 2,
    "top_k": TOP_K, "batch_size": 2,
}  # fmt: skip
ATTENTION = ["resid_post.*", "attn_in.*"]


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    isolate(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def enter(
    repository: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """`enter(lenses, ...)`: make a run folder of a tiny model that stands before the stage, and go there."""

    def make(lenses: Mapping[str, Any], task: TaskData = TASK, name: str = "run", **more: Any) -> Path:
        return make_run(repository / name, model_folder("llama"), lenses, monkeypatch, task=task, **more)

    return make


@pytest.fixture(scope="module")
def twin() -> HookTwin:
    found = HookTwin("llama")
    found.model.config._attn_implementation = "eager"
    return found


def log_of_sums(logits: np.ndarray, groups: list[list[int]]) -> np.ndarray:
    return np.log([np.exp(log_softmax(logits)[group]).sum() for group in groups])


def read(logits: list[np.ndarray], shape: tuple[int, ...], row: Any, own: np.ndarray | None, last: np.ndarray) -> Any:
    """What a lens should say of an example in cells of some shape; `kl` compares with `last`."""
    flat = expected([*logits, last], list(row.answers.values()), TOP_K, own)
    found = {
        name: values[:-1].reshape(*shape, *values.shape[1:]) for name, values in flat.items() if name != "model_top_id"
    }
    return {**found, "model_top_id": flat["model_top_id"]}


def last_of_query(row: Row) -> int:
    return row.spans["query"][1] - 1


def test_a_grid_writes_each_source_layer_after_each_target_layer(enter, twin):
    enter({"grid": GRID})
    measured = lens.run()
    store = open_store("lens.zarr/grid", verify=True)
    wanted, tokens = [], 0
    for example in PAIRS:
        source, target = PROMPTS[example.sources[0]], TARGETS[example.target]
        latents, groups = twin.residuals(source.input_ids)[:, -1], list(example.answers.values())
        position = last_of_query(target)
        cells = [twin.logits(target.input_ids, position, {into: latents[at]}) for at in (0, 2, 3) for into in (1, 2)]
        own = twin.logits(source.input_ids)
        one = read(cells, (3, 2), example, own, cells[-1])
        one["baseline_target_log_prob"] = log_of_sums(twin.logits(target.input_ids), groups)
        one["baseline_source_log_prob"] = log_of_sums(own, groups)
        wanted.append(one)
        tokens += 6 * len(target.input_ids)
    assert_equal(arrays(store), wanted, atol=1e-5)
    assert store.dimensions("log_prob") == ("example", "source_layer", "target_layer", "group")
    assert store.attributes["source_layers"] == store.static("source_layer").tolist() == [0, 2, 3]
    assert store.attributes["target_layers"] == store.static("target_layer").tolist() == [1, 2]
    assert "layers" not in store.attributes
    named = {*store.read("top_ids").ravel().tolist(), *store.read("model_top_id").tolist()}
    assert set(store.attributes["vocabulary"]) == {str(token) for token in named}
    assert measured["tokens"] == tokens


def generated(twin: HookTwin, ids: list[int], position: int, latents: dict[int, torch.Tensor]) -> list[int]:
    """The most probable tokens, one whole forward pass for each."""
    new: list[int] = []
    while len(new) < GENERATE["max_new_tokens"]:
        new.append(int(twin.logits([*ids, *new], position, latents).argmax()))
        if new[-1] == twin.model.generation_config.eos_token_id:
            break
    return new


@pytest.mark.parametrize("patch", ["one_layer", "from_layer"])
def test_generation_goes_on_from_each_layer(patch, enter, twin):
    tokenizer = tiny_tokenizer()
    target = tokenizer("cat -> cat\n1135 -> 1135\nhello -> hello\n?")["input_ids"]
    wanted = []
    for number in KEPT:
        states = twin.residuals(PROMPTS[number].input_ids)[:, -1]
        wanted.append([
            generated(twin, target, len(target) - 1,
                      {j: states[j] for j in (range(layer, NUM_LAYERS) if patch == "from_layer" else [layer])})
            for layer in (0, 2, 3)
        ])  # fmt: skip
    texts = [
        [tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids in by_layer]
        for by_layer in wanted
    ]
    # the first group has what is said at layer 2, in capitals and with spaces; the second one has nothing to say
    words = {number: " ".join(texts[at][1].upper().split()) or "?" for at, number in enumerate(KEPT)}
    prompts = [
        replace(prompt, words={"answer": [words.get(number, "word"), "no such word"], "latent_en": []})
        for number, prompt in enumerate(PROMPTS)
    ]
    enter({"generate": {**GENERATE, "patch": patch}}, replace(TASK, prompts=prompts))
    measured = lens.run()
    store = open_store("lens.zarr/generate", verify=True)
    padded = [[[*ids, *[-1] * (4 - len(ids))] for ids in by_layer] for by_layer in wanted]
    assert store.read("token_ids").tolist() == padded
    assert store.read("num_tokens").tolist() == [[len(ids) for ids in by_layer] for by_layer in wanted]
    assert store.attributes["texts"] == texts
    bare = [["".join(text.split()).casefold() for text in by_layer] for by_layer in texts]
    answers = ["".join(words[number].split()).casefold() for number in KEPT]
    hits = [[int(answer in text) for text in by_layer] for answer, by_layer in zip(answers, bare, strict=True)]
    found = store.read("answer_found")
    assert found[..., 0].tolist() == hits
    assert (found[..., 1] == -1).all(), "nothing is known of a group without words"
    assert all(row[1] for row in hits)
    assert store.attributes["layers"] == [0, 2, 3]
    assert set(store.attributes["vocabulary"]) == {str(t) for rows in wanted for ids in rows for t in ids}
    assert measured["tokens"] == 3 * len(KEPT) * (len(target) + 4)


def test_drawn_tokens_are_those_of_the_seed(enter):
    """Also across blocks: no two examples with the same target prompt share their draws."""
    alike = [replace(PROMPTS[0], prompt=f"{number}") for number in range(6)]
    drawn = {**GENERATE, "temperature": 5.0, "max_new_tokens": 6}
    ids = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        enter({"generate": {**drawn, "seed": seed}}, TaskData(alike, (), (), {}, TASK.groups), name=name)
        lens.run()
        ids.append(open_store("lens.zarr/generate").read("token_ids"))
    assert (ids[0] == ids[1]).all()
    assert (ids[0] != ids[2]).any()
    assert len({tuple(example.ravel()) for example in ids[0]}) == len(alike)


def test_attention_object_replaces_what_attention_receives(enter, twin):
    enter({"object": OBJECT}, sites=ATTENTION)
    lens.run()
    attentions = {index: layer.self_attn for index, layer in enumerate(twin.layers)}
    wanted = []
    for example in PAIRS:
        source, target = PROMPTS[example.sources[0]], TARGETS[example.target]
        groups, at = list(example.answers.values()), last_of_query(source)
        received = normed(twin, source.input_ids)[:, at]
        logits = [
            received_logits(twin.model, attentions, target.input_ids, last_of_query(target),
                            {j: received[j] for j in range(first, min(first + 2, NUM_LAYERS))})
            for first in (0, 1, 2)
        ]  # fmt: skip
        clean = twin.logits(target.input_ids)
        own = twin.logits(source.input_ids[: at + 1])
        one = read(logits, (3,), example, own, clean)
        one["baseline_target_log_prob"] = log_of_sums(clean, groups)
        one["baseline_source_log_prob"] = log_of_sums(twin.logits(source.input_ids), groups)
        wanted.append(one)
    assert_equal(arrays(open_store("lens.zarr/object", verify=True)), wanted, atol=1e-5)


@torch.no_grad()
def normed(twin: HookTwin, ids: list[int]) -> torch.Tensor:
    """(layer, position, hidden), what attention receives."""
    seen: list[torch.Tensor] = []
    hooks = [
        layer.input_layernorm.register_forward_hook(lambda _module, _args, output: seen.append(output[0].clone()))
        for layer in twin.layers
    ]
    twin.model(torch.tensor([list(ids)]))
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


@pytest.mark.parametrize("centred", [False, True])
def test_a_knock_out_cuts_each_block_in_each_window(centred, enter, twin):
    enter({"knockout": {**KNOCKOUT, "centred": centred}})
    measured = lens.run()
    store = open_store("lens.zarr/knockout", verify=True)
    wanted, tokens = [], 0
    for number in KEPT:
        prompt = PROMPTS[number]
        ids, (start, stop) = prompt.input_ids, prompt.spans["query"]
        blocks = [[0], list(range(start, stop)), list(range(start))]
        own = twin.logits(ids)
        logits = []
        for layer in (0, 2, 3):
            window = range(layer - 1, layer + 1) if centred else range(layer, layer + 2)
            inside = [j for j in window if 0 <= j < NUM_LAYERS]
            for keys in blocks:
                logits.append(cut_logits(twin.model, twin.layers, ids, inside, [(len(ids) - 1, key) for key in keys]))
        one = read(logits, (3, 3), prompt, own, own)
        one["baseline_source_log_prob"] = log_of_sums(own, list(prompt.answers.values()))
        wanted.append(one)
        tokens += 9 * len(ids)
    assert_equal(arrays(store), wanted, atol=1e-5)
    assert store.dimensions("log_prob") == ("example", "layer", "block", "group")
    assert store.attributes["blocks"] == KNOCKOUT["blocks"]
    assert store.static("layer").tolist() == store.attributes["layers"] == [0, 2, 3]
    assert "block" not in store.statics
    assert measured["tokens"] == tokens


ALL = {"generate": GENERATE, "grid": GRID, "knockout": KNOCKOUT, "object": OBJECT}


@pytest.mark.parametrize("name", ALL)
def test_a_killed_run_goes_on_and_leaves_the_same_bytes(name, enter, monkeypatch):
    lenses = {name: {**ALL[name], "temperature": 1.0} if name == "generate" else ALL[name]}
    undisturbed = enter(lenses, name="undisturbed", sites=ATTENTION)
    lens.run()
    killed = enter(lenses, name="killed", sites=ATTENTION)
    write = StoreWriter.write
    written: list[int] = []

    def write_once(writer: StoreWriter, block: int, values: Mapping[str, np.ndarray]) -> None:
        if written:
            raise KeyboardInterrupt
        write(writer, block, values)
        written.append(block)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreWriter, "write", write_once)
        lens.run()

    def write_more(writer: StoreWriter, block: int, values: Mapping[str, np.ndarray]) -> None:
        write(writer, block, values)
        written.append(block)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write", write_more)
        lens.run()
    assert written == [0, 1, 2], "the block that was complete is not computed again"
    assert files(killed / "lens.zarr") == files(undisturbed / "lens.zarr")


@pytest.mark.parametrize("name", ALL)
def test_no_groups_and_attributes(name, enter):
    prompts = [replace(prompt, answers={}, words={}, labels={}) for prompt in PROMPTS]
    pairs = [replace(pair, answers={}, words={}) for pair in PAIRS]
    enter({name: ALL[name]}, TaskData(prompts, TARGETS, pairs, {}, {}), sites=ATTENTION)
    lens.run()
    store = open_store(f"lens.zarr/{name}")
    assert store.attributes["groups"] == []
    assert store.attributes["kind"] == ALL[name]["kind"]
    assert store.attributes["data_digest"] == load_tokens().manifest["data_digest"]
    assert store.attributes["examples"] == ("pairs" if name in ("grid", "object") else "prompts")
    assert store.shape("answer_found" if name == "generate" else "log_prob")[-1] == 0


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("grid", {"target_layers": "2-9"}, "lens.grid.target_layers: .*9.* out of range"),
        ("grid", {"source_layers": "4"}, "lens.grid.source_layers: .*4.* out of range"),
        ("grid", {"target_position": "all"}, "expected one token, 'all' names 5 in target prompt 0"),
        ("generate", {"target_prompt": "kat"}, "Did you mean 'cat'"),
        ("generate", {"source_position": "query.lst"}, "position 'query.lst' was not collected"),
        ("object", {}, "lens.object.site: 'attn_in' was not collected"),
        ("knockout", {"blocks": ["after_query", "before_first"]}, "lens.knockout, prompt 0: .*no span 'first'"),
        ("knockout", {"blocks": ["query.3"]}, "lens.knockout, prompt 0: .*out of range"),
        ("knockout", {"blocks": ["2:"], "query_position": "1"}, "which none of the query positions"),
        ("knockout", {"blocks": ["all"]}, "blocks everything that its token -1 sees"),
    ],
)
def test_errors(name, changes, message, enter):
    enter({name: {**ALL[name], **changes}})
    with pytest.raises(InterpError, match=message):
        lens.run()
    assert not Path("lens.zarr").exists()


def test_generation_stays_within_what_the_model_reads(enter: Callable[..., Path]) -> None:
    enter({"generate": {**GENERATE, "max_new_tokens": 10_000}})
    with pytest.raises(InterpError, match=r"10000 tokens behind a target prompt of \d+ are more than the \d+ that the"):
        lens.run()

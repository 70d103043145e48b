"""The lens stage in a run folder of a tiny model: what it stores against the slow twins, and what survives a kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from interp.errors import InterpError
from interp.model import StandardizedTransformer
from pipeline.artifacts.tokens import TaskData, load_tokens
from pipeline.stages.lens import __main__ as lens
from pipeline.stages.lens.base import Lens
from pipeline.stages.lens.kinds.logit_lens import LogitLens
from pipeline.stages.tokenize import write_tokens
from pipeline.store import StoreWriter, list_stores, open_store
from tests.interp.lenses.twins import HookTwin, assert_equal, expected, log_softmax
from tests.pipeline.stages.lens.lens_run import (
    PAIR_GROUPS,
    PAIRS,
    PROMPT_GROUPS,
    PROMPTS,
    TARGETS,
    TASK,
    arrays,
    change,
    files,
    isolate,
    make_run,
)
from tests.tiny import NUM_LAYERS, tiny_tokenizer

ALL = list(range(NUM_LAYERS))
TOP_K = 3
LENSES: dict[str, dict[str, Any]] = {
    "logit": {"kind": "logit_lens", "position": "query.last", "layers": "0,2-3", "top_k": TOP_K, "batch_size": 2},
    "one": {"kind": "patchscope", "top_k": TOP_K, "batch_size": 2},
    "mean": {
        "kind": "patchscope", "source_position": "query.last", "target_position": "query.last", "patch": "from_layer",
        "sources": "mean", "layers": "1,3", "top_k": TOP_K, "batch_size": 2,
    },
    "identity": {
        "kind": "patchscope", "target": "identity", "target_prompt": "cat", "target_position": "-2", "layers": "0,2",
        "top_k": TOP_K, "batch_size": 2,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    isolate(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def enter(
    repository: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """`enter(...)`: make a run folder that stands before the stage, and go there."""

    def make(
        family: str = "llama", lenses: Mapping[str, Any] = LENSES, task: TaskData = TASK, name: str = "run", **more: Any
    ) -> Path:
        return make_run(repository / name, model_folder(family), lenses, monkeypatch, task=task, **more)

    return make


def log_of_sums(logits: np.ndarray, groups: list[list[int]]) -> np.ndarray:
    return np.log([np.exp(log_softmax(logits)[group]).sum() for group in groups])


def source_baseline(twin: HookTwin, sources: list[int], groups: list[list[int]]) -> np.ndarray:
    probabilities = [np.exp(log_of_sums(twin.logits(PROMPTS[s].input_ids), groups)) for s in sources]
    return np.log(np.mean(probabilities, axis=0))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_stored_numbers_equal_the_twins(family, enter):
    enter(family)
    measured = lens.run()
    assert list_stores("lens.zarr") == sorted(LENSES)
    twin = HookTwin(family)

    wanted, kept = [], [0, 1, 2, 4, 5]  # prompt 3 collides
    for number in kept:
        prompt = PROMPTS[number]
        ids, position, groups = prompt.input_ids, prompt.spans["query"][1] - 1, list(prompt.answers.values())
        head, states = ids[: position + 1], twin.residuals(ids)[:, position]
        by_layer = [twin.logits(head, position, {3: states[layer]}) for layer in (0, 2, 3)]
        one = expected(by_layer, groups, TOP_K, twin.logits(head))
        wanted.append({**one, "baseline_source_log_prob": source_baseline(twin, [number], groups)})
    store = open_store("lens.zarr/logit", verify=True)
    assert_equal(arrays(store), wanted, atol=1e-5)
    assert store.static("row").tolist() == kept
    assert store.static("layer").tolist() == store.attributes["layers"] == [0, 2, 3]

    wanted, tokens = [], 0
    for example in PAIRS:
        source, target = PROMPTS[example.sources[0]].input_ids, TARGETS[example.target].input_ids
        latents, groups = twin.residuals(source)[:, -1], list(example.answers.values())
        by_layer = [twin.logits(target, len(target) - 1, {layer: latents[layer]}) for layer in ALL]
        one = expected(by_layer, groups, TOP_K, twin.logits(source))
        one["baseline_target_log_prob"] = log_of_sums(twin.logits(target), groups)
        one["baseline_source_log_prob"] = source_baseline(twin, [example.sources[0]], groups)
        wanted.append(one)
        tokens += len(target) * NUM_LAYERS
    assert_equal(arrays(open_store("lens.zarr/one")), wanted, atol=1e-5)

    wanted = []
    for example in PAIRS:
        target, groups = TARGETS[example.target], list(example.answers.values())
        latents = torch.stack(
            [twin.residuals(PROMPTS[s].input_ids)[:, PROMPTS[s].spans["query"][1] - 1] for s in example.sources]
        ).mean(dim=0)
        position = target.spans["query"][1] - 1
        by_layer = [twin.logits(target.input_ids, position, {j: latents[j] for j in range(k, 4)}) for k in (1, 3)]
        one = expected(by_layer, groups, TOP_K, None)  # a mean is no state of the model's own
        one["baseline_target_log_prob"] = log_of_sums(twin.logits(target.input_ids), groups)
        one["baseline_source_log_prob"] = source_baseline(twin, list(example.sources), groups)
        wanted.append(one)
        tokens += len(target.input_ids) * 2
    assert_equal(arrays(open_store("lens.zarr/mean")), wanted, atol=1e-5)

    wanted = []
    target = tiny_tokenizer()("cat -> cat\n1135 -> 1135\nhello -> hello\n?")["input_ids"]
    for number in kept:
        ids, groups = PROMPTS[number].input_ids, list(PROMPTS[number].answers.values())
        latents = twin.residuals(ids)[:, -1]
        by_layer = [twin.logits(target, len(target) - 2, {layer: latents[layer]}) for layer in (0, 2)]
        one = expected(by_layer, groups, TOP_K, twin.logits(ids))
        one["baseline_target_log_prob"] = log_of_sums(twin.logits(target), groups)
        wanted.append({**one, "baseline_source_log_prob": source_baseline(twin, [number], groups)})
        tokens += len(target) * 2
    assert_equal(arrays(open_store("lens.zarr/identity")), wanted, atol=1e-5)

    assert measured["tokens"] == tokens
    assert measured["model_seconds"] > 0


def test_an_inverted_lens_reads_what_a_state_speaks_against(enter):
    enter(lenses={"logit": {**LENSES["logit"], "position": "last", "inverted": True}})
    lens.run()
    twin, wanted = HookTwin("llama"), []
    for number in (0, 1, 2, 4, 5):
        prompt = PROMPTS[number]
        states, groups = twin.residuals(prompt.input_ids)[:, -1], list(prompt.answers.values())
        last = len(prompt.input_ids) - 1
        by_layer = [-twin.logits(prompt.input_ids, last, {3: states[layer]}) for layer in (0, 2, 3)]  # no bias
        one = expected(by_layer, groups, TOP_K, twin.logits(prompt.input_ids))
        wanted.append({**one, "baseline_source_log_prob": source_baseline(twin, [number], groups)})
    assert_equal(arrays(open_store("lens.zarr/logit")), wanted, atol=1e-5)


def test_attributes_and_vocabulary(enter):
    enter()
    lens.run()
    store = open_store("lens.zarr/one")
    attributes = store.attributes
    assert {key: attributes[key] for key in ("format", "name", "kind", "examples", "top_k", "units")} == {
        "format": "interpipe.lens/1", "name": "one", "kind": "patchscope", "examples": "pairs", "top_k": TOP_K,
        "units": "nats",
    }  # fmt: skip
    assert attributes["groups"] == list(PAIR_GROUPS)
    assert attributes["group_labels"] == PAIR_GROUPS
    assert attributes["config"]["target"] == "task"
    assert attributes["model"]["digest"] == open_store("activations.zarr").attributes["model"]["digest"]
    assert attributes["data_digest"] == load_tokens().manifest["data_digest"]
    named = {*store.read("top_ids").ravel().tolist(), *store.read("model_top_id").tolist()}
    tokenizer = tiny_tokenizer()
    assert set(attributes["vocabulary"]) == {str(token) for token in named}
    for token in named:
        text = tokenizer.decode([token])
        assert attributes["vocabulary"][str(token)] in (text, tokenizer.convert_ids_to_tokens(token))
    assert "-1" not in open_store("lens.zarr/mean").attributes["vocabulary"]


def test_vocabulary_of_a_sentencepiece_like_tokenizer():
    pieces = {3: "▁king", 4: "king", 5: "<0xE4>", 6: "ĠBuch"}
    texts = {3: "king", 4: "king", 5: "\ufffd", 6: " Buch"}

    class Pieces:
        def __len__(self) -> int:
            return 7

        def convert_ids_to_tokens(self, token: int) -> str | None:
            return pieces.get(token)

        def decode(self, tokens: list[int], clean_up_tokenization_spaces: bool) -> str:
            return texts[tokens[0]]

    wanted = {"3": " king", "4": "king", "5": "<0xE4>", "6": " Buch", "7": "<unused 7>"}
    assert lens.vocabulary_of(Pieces(), [7, 6, 5, 4, 3, -1]) == wanted


def test_a_killed_run_goes_on_and_leaves_the_same_bytes(enter, monkeypatch):
    undisturbed = enter(name="undisturbed")
    lens.run()
    killed = enter(name="killed")
    write = StoreWriter.write
    written: list[int] = []

    def write_once(writer: StoreWriter, block: int, values: Mapping[str, np.ndarray]) -> None:
        if written:
            raise KeyboardInterrupt
        write(writer, block, values)
        written.append(block)

    monkeypatch.setattr(StoreWriter, "write", write_once)
    with pytest.raises(KeyboardInterrupt):
        lens.run()
    assert not (killed / "lens.zarr").exists()
    monkeypatch.setattr(StoreWriter, "write", write)

    computed: list[tuple[str, int]] = []

    def counting(prepared: Lens[Any], rows: range) -> dict[str, np.ndarray]:
        computed.append((prepared.name, rows.start))
        return compute(prepared, rows)

    compute = LogitLens.compute
    monkeypatch.setattr(LogitLens, "compute", counting)
    lens.run()
    assert (("logit", 0) in computed, ("logit", 2) in computed) == (False, True)
    assert files(killed / "lens.zarr") == files(undisturbed / "lens.zarr")
    assert not any((undisturbed.parent / ".interpipe/scratch").glob("lens-*/"))


def test_work_of_another_config_is_not_resumed(enter, monkeypatch):
    """The scratch folder is named by the config, so what another config left is neither used nor in the way."""
    enter(lenses={"logit": LENSES["logit"]})

    def interrupted(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreWriter, "finish", interrupted)
        lens.run()
    change("lens", {"logit": {**LENSES["logit"], "position": "last"}})
    lens.run()
    twin = HookTwin("llama")
    top = [log_softmax(twin.logits(PROMPTS[number].input_ids)).argmax() for number in (0, 1, 2, 4, 5)]
    assert open_store("lens.zarr/logit").read("model_top_id").tolist() == top


def test_layers_that_were_not_collected_leave_gaps_not_guesses(enter):
    """Without the last layer nobody knows what the model itself says."""
    enter(lenses={"logit": {**LENSES["logit"], "layers": "0-2"}}, sites=["resid_post.0-2"])
    lens.run()
    store = open_store("lens.zarr/logit")
    assert np.isnan(store.read("surprisal")).all()
    assert (store.read("model_top_id") == -1).all()
    assert np.isnan(store.read("baseline_source_log_prob")).all()
    assert np.isfinite(store.read("log_prob")).all()


def test_prompts_without_groups(enter):
    prompts = [replace(prompt, answers={}, words={}, labels={}) for prompt in PROMPTS]
    enter(lenses={"logit": LENSES["logit"]}, task=TaskData(prompts))
    lens.run()
    store = open_store("lens.zarr/logit")
    assert store.shape("log_prob") == (6, 3, 0)
    assert store.attributes["groups"] == []
    assert np.isfinite(store.read("entropy")).all()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "logit",
            {"site": "mlp_out"},
            r"lens.logit.site: 'mlp_out' was not collected. Known: resid_post. Add 'mlp_out",
        ),
        ("logit", {"site": "embed"}, "expected a kind of site that every layer has, got 'embed'"),
        ("logit", {"position": "query.lst"}, "position 'query.lst' was not collected. Did you mean 'query.last'"),
        ("logit", {"layers": "2-9"}, "lens.logit.layers: .*9.* out of range"),
        ("logit", {"layers": "0-2"}, r"needs resid_post of layers \[1\], which were not collected; there are layers"),
        ("mean", {"layers": "0"}, r"needs resid_post of layers \[1\]"),
        ("one", {"target": "tsk"}, "lens.one.target: expected one of task, identity, got 'tsk'. Did you mean 'task'"),
        ("one", {"sources": "median"}, "lens.one.sources: expected one of first, mean, got 'median'"),
        ("one", {"target_position": "query.al"}, "lens.one.target_position, target prompt 0: "),
        ("one", {"target_position": "all"}, "expected one token, 'all' names 5 in target prompt 0"),
        ("identity", {"target_position": "40"}, "lens.identity.target_position, the prompt: .*out of range"),
        ("identity", {"sources": "mean"}, "sources=mean needs target=task"),
        ("identity", {"target_prompt": "kng"}, "Did you mean 'king'"),
        ("one", {"source_position": "query.all[2]"}, r"position 'query.all\[2\]': prompt 0 has no such token"),
    ],
)
def test_errors_of_the_config(name, changes, message, prepared):
    change("lens", {name: {**LENSES[name], "layers": "0,2-3" if name != "mean" else "2", **changes}})
    with pytest.raises(InterpError, match=message):
        lens.run()
    assert not Path("lens.zarr").exists()


@pytest.fixture(scope="module")
def folder_without_layer_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared") / "run"


@pytest.fixture(scope="module")
def loaded(model_folder: Callable[[str], Path]) -> StandardizedTransformer:
    return StandardizedTransformer(model_folder("llama"), device_map="cpu")


@pytest.fixture
def prepared(folder_without_layer_1, loaded, repository, enter, monkeypatch) -> Path:
    """A run folder whose store lacks layer 1, made once and copied; its model is loaded once."""
    monkeypatch.setattr(lens, "load_model", lambda _config: loaded)
    if not folder_without_layer_1.exists():
        made = enter(name="first", sites=["resid_post.0,2,3"], positions=["last", "query.last", "query.all"])
        shutil.copytree(made, folder_without_layer_1)
    folder = repository / "run"
    shutil.copytree(folder_without_layer_1, folder)
    monkeypatch.chdir(folder)
    return folder


def test_errors_of_the_inputs(prepared):
    write_tokens(TaskData(PROMPTS, (), (), {}, PROMPT_GROUPS), "tokens", kind="cloze", tokenizer_digest="0" * 64)
    change("lens", {"one": {**LENSES["one"], "layers": "0"}})
    with pytest.raises(InterpError, match="holds no pair"):
        lens.run()

    colliding = [replace(prompt, labels={"collides": "yes"}) for prompt in PROMPTS]
    write_tokens(TaskData(colliding, (), (), {}, PROMPT_GROUPS), "tokens", kind="cloze", tokenizer_digest="0" * 64)
    change("lens", {"logit": {**LENSES["logit"], "layers": "0"}})
    with pytest.raises(InterpError, match="all 6 prompts share a token"):
        lens.run()

    write_tokens(TaskData(PROMPTS[:5], (), (), {}, PROMPT_GROUPS), "tokens", kind="cloze", tokenizer_digest="0" * 64)
    with pytest.raises(InterpError, match="collected from other prompts"):
        lens.run()

    write_tokens(TASK, "tokens", kind="translation", tokenizer_digest="0" * 64)
    model = OmegaConf.to_container(OmegaConf.load("params.yaml"))["model"]
    change("model", {**model, "source": "elsewhere"})
    with pytest.raises(InterpError, match="collected from another model"):
        lens.run()

    shutil.rmtree("activations.zarr")
    with pytest.raises(InterpError, match=r"expected a store at activations\.zarr"):
        lens.run()

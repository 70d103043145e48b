"""What states go through before they are written or read out, and patches of other sites: against the slow twins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.translators import TunedLens
from interp.translators.affine_maps import AffineMap, AffinePairs
from pipeline.stages.lens import __main__ as lens
from pipeline.stages.report.words import describe_mapping
from pipeline.store import StoreWriter, open_store
from tests.interp.lenses.twins import HookTwin, assert_equal, expected
from tests.pipeline.stages.lens.lens_run import PAIRS, PROMPTS, TARGETS, arrays, files, isolate, make_run
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS, tiny_tokenizer

TOP_K = 2
KEPT = [0, 1, 2, 4, 5]  # prompt 3 collides
LAST = NUM_LAYERS - 1
LAYERS = tuple(range(NUM_LAYERS))
NAMES = ("log_prob", "rank", "top_ids", "top_log_prob", "entropy", "surprisal", "model_top_id")
PATCHSCOPE = {"kind": "patchscope", "target_position": "query.last", "top_k": TOP_K, "batch_size": 2}
IDENTITY = {**PATCHSCOPE, "target": "identity", "target_prompt": "cat", "target_position": "last"}
GRID = {**PATCHSCOPE, "kind": "patchscope_grid", "source_layers": "0,2", "target_layers": "1-3"}
LOGIT = {"kind": "logit_lens", "layers": "0,2-3", "mapping": "affine_last", "top_k": TOP_K, "batch_size": 2}
GENERATE = {
    "kind": "patchscope_generate", "target": "identity", "target_prompt": "cat", "layers": "1,3", "max_new_tokens": 3,
    "batch_size": 2,
}  # fmt: skip
Enter = Callable[..., Path]


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    isolate(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def enter(repository: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Enter:
    """`enter(lenses, maps, ...)`: a run folder that stands before the stage, with `tuned_lens/` in it."""

    def make(lenses: Mapping[str, Any], maps: str = "pairs", name: str = "run", **more: Any) -> Path:
        folder = make_run(repository / name, model_folder("llama"), lenses, monkeypatch, **more)
        model = StandardizedTransformer(model_folder("llama"), dtype="float32", device_map="cpu")
        write_tuned_lens(model, maps)
        return folder

    return make


def write_tuned_lens(model: StandardizedTransformer, maps: str) -> None:
    """An artifact `tuned_lens/` with random translators and maps."""
    generator = torch.Generator().manual_seed(0)
    made = TunedLens.of(model, [0, 1, 2])
    made.take({name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in made.tensors().items()})
    made.save("tuned_lens")
    pairs = random_pairs()
    held = AffineMap(LAYERS, pairs.weight[:, LAST], pairs.bias[:, LAST]) if maps == "last" else pairs
    held.save("tuned_lens/affine.safetensors")
    told = {
        "maps": maps, "layers": list(LAYERS), "tokens": 500, "fitted_to": "text", "model": model.digest(), "ridge": 0.0,
        "text": {"source": {"path": "corpus.jsonl"}},
    }  # fmt: skip
    Path("tuned_lens/manifest.json").write_text(json.dumps({"kind": "prompts", "affine": told}))


def random_pairs() -> AffinePairs:
    generator = torch.Generator().manual_seed(1)
    weight = 0.2 * torch.randn(NUM_LAYERS, NUM_LAYERS, HIDDEN_SIZE, HIDDEN_SIZE, generator=generator)
    return AffinePairs(LAYERS, LAYERS, weight, torch.randn(NUM_LAYERS, NUM_LAYERS, HIDDEN_SIZE, generator=generator))


def mapped(kind: str, state: Tensor, layer: int, target: int) -> Tensor:
    """A state after a layer as it is written at a layer."""
    if kind == "identity":
        return state
    if kind == "tuned":
        if layer == LAST:
            return state
        held = load_file("tuned_lens/lens.safetensors")
        return state + held[f"bias.{layer}"] + held[f"weight.{layer}"] @ state
    pairs, to = random_pairs(), LAST if kind == "affine_last" else target
    return pairs.weight[layer, to] @ state + pairs.bias[layer, to]


@pytest.fixture(scope="module")
def twin() -> HookTwin:
    return HookTwin("llama")


def of_pairs(cells: Callable[[Tensor, Sequence[int], int], list[np.ndarray]], twin: HookTwin) -> list[dict[str, Any]]:
    """What the store should hold of pairs, whose cells' logits are computed from source states, target and position."""
    wanted = []
    for pair in PAIRS:
        source, target = PROMPTS[pair.sources[0]], TARGETS[pair.target]
        states = twin.residuals(source.input_ids)[:, -1]
        logits = cells(states, target.input_ids, target.spans["query"][1] - 1)
        found = expected(logits, list(pair.answers.values()), TOP_K, twin.logits(source.input_ids))
        wanted.append({name: found[name] for name in NAMES})
    return wanted


@pytest.mark.parametrize("kind", ["identity", "affine_last", "tuned"])
@pytest.mark.parametrize("patch", ["one_layer", "from_layer"])
def test_a_patchscope_writes_mapped_states(kind: str, patch: str, enter: Enter, twin: HookTwin) -> None:
    enter({"scope": {**PATCHSCOPE, "layers": "0,2-3", "patch": patch, "mapping": kind}})
    lens.run()

    def cells(states: Tensor, ids: Sequence[int], position: int) -> list[np.ndarray]:
        return [
            twin.logits(ids, position, {
                at: mapped(kind, states[at], at, at)
                for at in ([layer] if patch == "one_layer" else range(layer, NUM_LAYERS))
            })
            for layer in (0, 2, 3)
        ]  # fmt: skip

    assert_equal(arrays(open_store("lens.zarr/scope", verify=True)), of_pairs(cells, twin), atol=1e-5)


@pytest.mark.parametrize("kind", ["identity", "affine_last", "affine_target", "tuned"])
def test_a_grid_writes_mapped_states(kind: str, enter: Enter, twin: HookTwin) -> None:
    enter({"grid": {**GRID, "mapping": kind}})
    lens.run()

    def cells(states: Tensor, ids: Sequence[int], position: int) -> list[np.ndarray]:
        return [twin.logits(ids, position, {to: mapped(kind, states[at], at, to)}) for at in (0, 2) for to in (1, 2, 3)]

    wanted = [
        {
            name: value if name == "model_top_id" else value.reshape(2, 3, *value.shape[1:])
            for name, value in one.items()
        }
        for one in of_pairs(cells, twin)
    ]
    assert_equal(arrays(open_store("lens.zarr/grid", verify=True)), wanted, atol=1e-5)


@pytest.mark.parametrize("maps", ["last", "pairs"])
def test_the_affine_lens_reads_mapped_states(maps: str, enter: Enter, twin: HookTwin) -> None:
    enter({"affine": LOGIT}, maps)
    lens.run()
    wanted = []
    for number in KEPT:
        prompt = PROMPTS[number]
        states = twin.residuals(prompt.input_ids)[:, -1]
        at = len(prompt.input_ids) - 1
        logits = [
            twin.logits(prompt.input_ids, at, {LAST: mapped("affine_last", states[layer], layer, LAST)})
            for layer in (0, 2, 3)
        ]
        found = expected(logits, list(prompt.answers.values()), TOP_K, twin.logits(prompt.input_ids))
        wanted.append({name: found[name] for name in (*NAMES, "kl")})
    assert_equal(arrays(open_store("lens.zarr/affine", verify=True)), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["affine_last", "tuned"])
def test_generation_goes_on_from_mapped_states(kind: str, enter: Enter, twin: HookTwin) -> None:
    enter({"generate": {**GENERATE, "mapping": kind}})
    lens.run()
    ids = tiny_tokenizer()("cat -> cat\n1135 -> 1135\nhello -> hello\n?")["input_ids"]
    found = open_store("lens.zarr/generate").read("token_ids")
    for example, number in enumerate(KEPT):
        states = twin.residuals(PROMPTS[number].input_ids)[:, -1]
        for index, layer in enumerate((1, 3)):
            new: list[int] = []
            while len(new) < 3 and twin.model.generation_config.eos_token_id not in new:
                state = {layer: mapped(kind, states[layer], layer, layer)}
                new.append(int(twin.logits([*ids, *new], len(ids) - 1, state).argmax()))
            assert found[example, index].tolist() == [*new, *[-1] * (3 - len(new))]


# --- other sites ---


@contextmanager
def replaced(twin: HookTwin, layer: int, position: int, value: Tensor) -> Iterator[None]:
    """An MLP whose output at a token is another's."""

    def hook(_module: Any, _args: Any, output: Tensor) -> None:
        output[0, position] = value

    handle = twin.layers[layer].mlp.register_forward_hook(hook)
    yield
    handle.remove()


@torch.no_grad()
def contributions(twin: HookTwin, ids: Sequence[int]) -> Tensor:
    """(layer, position, hidden), what each MLP adds."""
    seen: list[Tensor] = []
    handles = [
        layer.mlp.register_forward_hook(lambda _module, _args, output: seen.append(output[0].clone()))
        for layer in twin.layers
    ]
    twin.model(torch.tensor([list(ids)]))
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def test_a_grid_of_another_site(enter: Enter, twin: HookTwin) -> None:
    enter({"grid": {**GRID, "site": "mlp_out"}}, sites=["resid_post.3", "mlp_out.0,2"])
    lens.run()
    wanted = []
    for pair in PAIRS:
        source, target = PROMPTS[pair.sources[0]], TARGETS[pair.target]
        added, position = contributions(twin, source.input_ids)[:, -1], target.spans["query"][1] - 1
        cells = []
        for at in (0, 2):
            for to in (1, 2, 3):
                with replaced(twin, to, position, added[at]):
                    cells.append(twin.logits(target.input_ids))
        found = expected(cells, list(pair.answers.values()), TOP_K, twin.logits(source.input_ids))
        wanted.append({
            name: found[name] if name == "model_top_id" else found[name].reshape(2, 3, *found[name].shape[1:])
            for name in NAMES
        })  # fmt: skip
    assert_equal(arrays(open_store("lens.zarr/grid", verify=True)), wanted, atol=1e-5)


def test_generation_of_another_site(enter: Enter, twin: HookTwin) -> None:
    enter({"generate": {**GENERATE, "site": "mlp_out"}}, sites=["mlp_out.*"])
    lens.run()
    ids = tiny_tokenizer()("cat -> cat\n1135 -> 1135\nhello -> hello\n?")["input_ids"]
    found = open_store("lens.zarr/generate").read("token_ids")
    for example, number in enumerate(KEPT):
        added = contributions(twin, PROMPTS[number].input_ids)[:, -1]
        for index, layer in enumerate((1, 3)):
            new: list[int] = []
            while len(new) < 3 and twin.model.generation_config.eos_token_id not in new:
                with replaced(twin, layer, len(ids) - 1, added[layer]):
                    new.append(int(twin.logits([*ids, *new]).argmax()))
            assert found[example, index].tolist() == [*new, *[-1] * (3 - len(new))]


# --- what is kept, and what is refused ---


def test_the_store_says_what_the_mapping_was_made_from(enter: Enter) -> None:
    kinds = ("identity", "affine_last", "tuned")
    scopes = {kind: {**IDENTITY, "layers": "0", "mapping": kind} for kind in kinds}
    enter(scopes | {"grid": {**GRID, "mapping": "affine_target"}})
    lens.run()
    told = {name: open_store(f"lens.zarr/{name}").attributes for name in (*kinds, "grid")}
    assert told["identity"]["mapping"] == {"kind": "identity"}
    assert told["affine_last"]["mapping"]["tokens"] == 500
    assert told["tuned"]["mapping"]["layers"] == [0, 1, 2]
    assert describe_mapping(told["identity"]) == ""
    assert describe_mapping(told["affine_last"]) == (
        "On the way it goes through an affine map from layer j to the last layer, fitted by least squares to 500 "
        "tokens of corpus.jsonl, other text than is read here."
    )
    assert "from layer j to layer k" in describe_mapping(told["grid"])
    assert "tuned lens (Belrose et al., 2023), of unknown training." in describe_mapping(told["tuned"])


def test_a_killed_run_goes_on_with_the_same_maps(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same bytes; and with other maps all is computed anew."""
    lenses = {"grid": {**GRID, "mapping": "affine_target"}}
    undisturbed = enter(lenses, name="undisturbed")
    lens.run()
    killed = enter(lenses, name="killed")
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
    lens.run()
    assert files(killed / "lens.zarr") == files(undisturbed / "lens.zarr")
    pairs = random_pairs()
    AffinePairs(LAYERS, LAYERS, 2 * pairs.weight, pairs.bias).save("tuned_lens/affine.safetensors")
    lens.run()
    one, other = (open_store(f / "lens.zarr" / "grid").read("entropy") for f in (undisturbed, killed))
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(
    ("section", "maps", "message"),
    [
        ({**GRID, "mapping": "affine_target"}, "last", "affine_target needs a grid, .* maps to the last layer alone"),
        ({**IDENTITY, "mapping": "affine_target"}, "pairs", "affine_target needs a grid, .* no target layers"),
    ],
)
def test_maps_that_do_not_fit(section: dict[str, Any], maps: str, message: str, enter: Enter) -> None:
    enter({"scope": section}, maps)
    with pytest.raises(InterpError, match=f"lens.scope.mapping: {message}"):
        lens.run()


def test_no_maps(enter: Enter) -> None:
    enter({"scope": {**IDENTITY, "mapping": "affine_last"}})
    Path("tuned_lens/manifest.json").write_text('{"kind": "off"}')
    with pytest.raises(InterpError, match=r"holds no affine maps\. Set tune\.affine=last"):
        lens.run()


def test_a_layer_without_translator(enter: Enter, model_folder: Callable[[str], Path]) -> None:
    enter({"scope": {**IDENTITY, "mapping": "tuned"}})
    TunedLens.of(StandardizedTransformer(model_folder("llama"), device_map="cpu"), [0, 1]).save("tuned_lens")
    with pytest.raises(
        InterpError, match=r"lens.scope.mapping: the tuned lens has no translator of layers \[2\], only"
    ):
        lens.run()

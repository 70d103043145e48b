"""Affine maps of the stage `tune`: against least squares in plain numpy on plain transformers; and after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.translators.affine_maps import AffineMap, AffinePairs
from pipeline.artifacts import affine_maps
from pipeline.artifacts.affine_maps import load_affine
from pipeline.artifacts.tokens import TaskData
from pipeline.project import MARKER
from pipeline.stages import tune
from pipeline.stages.tokenize import write_tokens
from tests.interp.lenses.twins import HookTwin
from tests.pipeline.stages.lens.lens_run import PROMPTS, files, row
from tests.tiny import NUM_LAYERS, TEXT, tiny_tokenizer

GENERATOR = np.random.default_rng(0)
# Enough tokens to fix maps of 32 numbers: sixty prompts of ten.
MANY = [row([1, *GENERATOR.integers(10, 250, 9).tolist()], (1, 3), number % 5) for number in range(60)]
LAST = NUM_LAYERS - 1
Enter = Callable[..., Path]


@pytest.fixture(autouse=True)
def repository(tmp_path: Path) -> Path:
    (tmp_path / MARKER).touch()
    return tmp_path


@pytest.fixture
def enter(repository: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Enter:
    """`enter(name, **section)`: make a run folder with a section `tune`, and go there."""

    def make(name: str = "run", prompts: Sequence[Any] = MANY, **section: Any) -> Path:
        folder = repository / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        source = str(model_folder("llama"))
        tuned = {"kind": "prompts", "train": False, "affine": "last", "depends_on": "tokens", "batch_tokens": 64}
        params = {
            "model": {"name": "llama", "source": source, "device_map": "cpu", "depends_on": source},
            "tune": {**tuned, **section},
        }
        OmegaConf.save(params, folder / "params.yaml")
        write_tokens(
            TaskData(prompts, (), (), {}, {"answer": "it", "latent_en": "en"}),
            "tokens",
            kind="translation",
            tokenizer_digest="0" * 64,
        )
        return folder

    return make


def told() -> dict[str, Any]:
    return json.loads(Path("tuned_lens/manifest.json").read_text())


def states(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """(layer, state, hidden) float64 after the first token of each sequence."""
    twin = HookTwin("llama")
    return torch.cat([twin.residuals(ids)[:, 1:] for ids in sequences], dim=1).double().numpy()


def squares(source: np.ndarray, target: np.ndarray, ridge: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of the affine map with the least squares, by an augmented system."""
    size = source.shape[1]
    centred, wanted = source - source.mean(0), target - target.mean(0)
    penalty = np.sqrt(ridge) * np.eye(size)
    weight = np.linalg.lstsq(
        np.concatenate([centred, penalty]), np.concatenate([wanted, np.zeros((size, target.shape[1]))]), rcond=None
    )[0].T
    return weight, target.mean(0) - weight @ source.mean(0)


def check(found: AffineMap, held: np.ndarray, target: int, ridge: float = 0.0) -> None:
    """Whether a map says of every state what least squares say."""
    said = found(torch.from_numpy(held[list(found.layers)]).float(), found.layers).numpy()
    for place, layer in enumerate(found.layers):
        if layer == target:
            np.testing.assert_array_equal(said[place], held[layer].astype(np.float32))
            continue
        weight, bias = squares(held[layer], held[target], ridge)
        np.testing.assert_allclose(said[place], held[layer] @ weight.T + bias, atol=2e-4)
        assert np.abs(said[place] - held[layer]).max() > 0.1, "it is no identity"


@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_maps_to_the_last_layer_are_least_squares_of_the_prompts(ridge: float, enter: Enter) -> None:
    folder = enter(affine_ridge=ridge, affine_layers="0,2")
    measured = tune.run()
    found = AffineMap.load("tuned_lens/affine.safetensors")
    assert found.layers == (0, 2, LAST)
    check(found, states([prompt.input_ids for prompt in MANY]), LAST, ridge)
    assert measured["tokens"] == told()["affine"]["tokens"] == 60 * 9
    assert set(files(folder / "tuned_lens")) == {"affine.safetensors", "manifest.json"}, "no tuned lens is trained"
    assert {key: told()["affine"][key] for key in ("maps", "layers", "fitted_to", "ridge")} == {
        "maps": "last", "layers": [0, 2, LAST], "fitted_to": "prompts", "ridge": ridge,
    }  # fmt: skip


def test_maps_between_all_layers(enter: Enter) -> None:
    enter(affine="pairs", affine_tokens=400)
    tune.run()
    found = AffinePairs.load("tuned_lens/affine.safetensors")
    assert found.layers == found.target_layers == tuple(range(NUM_LAYERS))
    held = states([prompt.input_ids for prompt in MANY])[:, :400]
    assert told()["affine"]["tokens"] == 400
    for target in range(NUM_LAYERS):
        check(found.to_layer(target), held, target)


def test_text_is_packed_as_for_the_tuned_lens(enter: Enter, repository: Path) -> None:
    """Both are made of one text, which each reads from its beginning; the maps read it once."""
    text = repository / "text.txt"
    text.write_text("\n\n".join(TEXT * 6), encoding="utf-8")
    enter(kind="text", source=str(text), sequence_length=16, train=True, steps=2, tokens_per_step=32, evaluate_tokens=0)
    tune.run()
    tokenizer = tiny_tokenizer()
    prefix = tokenizer("")["input_ids"]
    stream = [
        token
        for document in TEXT * 6
        for token in [*tokenizer(document, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    width = 16 - len(prefix)
    packed = [[*prefix, *stream[at : at + width]] for at in range(0, len(stream) - width + 1, width)]
    check(AffineMap.load("tuned_lens/affine.safetensors"), states(packed), LAST)
    assert told()["affine"]["tokens"] == 15 * len(packed)
    assert told()["affine"]["text"]["source"]["path"] == "text.txt"
    assert str(repository) not in Path("tuned_lens/manifest.json").read_text()
    assert {"lens.safetensors", "config.json"} < set(files(Path("tuned_lens")))


def test_a_killed_fit_leaves_the_same_bytes(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    section = {"train": True, "steps": 2, "tokens_per_step": 40, "evaluate_tokens": 20}
    undisturbed = enter("undisturbed", **section)
    tune.run()
    killed = enter("killed", **section)
    run_states, calls = affine_maps.token_states, []

    def kill(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_states(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(affine_maps, "token_states", kill)
        tune.run()
    assert not (killed / "tuned_lens").exists()
    assert tune.run()["tokens"] == 60 * 9, "the tuned lens was finished; the maps begin again"
    assert files(killed / "tuned_lens") == files(undisturbed / "tuned_lens")
    assert not any((undisturbed.parent / ".interpipe/scratch").glob("tune-*/"))


def test_other_maps_are_another_work(enter: Enter) -> None:
    enter("one")
    tune.run()
    first = files(Path("tuned_lens"))["affine.safetensors"]
    enter("other", affine_tokens=300)
    tune.run()
    assert files(Path("tuned_lens"))["affine.safetensors"] != first


def test_too_little_text(enter: Enter) -> None:
    enter(prompts=PROMPTS)
    with pytest.raises(InterpError, match=r"tune.affine: \d+ rows cannot fix an affine map of .* tune.affine_ridge"):
        tune.run()
    assert not Path("tuned_lens").exists()


def test_maps_are_of_their_model(enter: Enter, model_folder: Callable[[str], Path]) -> None:
    enter()
    tune.run()
    loaded = {name: StandardizedTransformer(model_folder(name), device_map="cpu") for name in ("llama", "gpt2")}
    maps, described = load_affine("tuned_lens", loaded["llama"])
    assert isinstance(maps, AffineMap)
    assert described == told()["affine"]
    with pytest.raises(InterpError, match="of another model"):
        load_affine("tuned_lens", loaded["gpt2"])
    with pytest.raises(InterpError, match=r"holds no affine maps. Set tune.affine=last"):
        load_affine("tokens", loaded["llama"])

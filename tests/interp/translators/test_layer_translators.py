"""The lens: what it computes, and what it is kept with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from interp.errors import InterpError
from interp.lenses import Latents, logit_lens, tuned_lens
from interp.model import StandardizedTransformer
from interp.translators import TunedLens, unembedding_digest
from tests.interp.lenses.twins import FAMILIES, assert_equal, expected
from tests.interp.translators.twins import TunedTwin, as_tensors, random_translators
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS, tiny_model, tiny_tokenizer

Standardized = Callable[[str], StandardizedTransformer]
PROMPTS = [[1, 30, 200, 77], [1, 12, 350, 99, 41, 8, 300], [1, 5]]
GROUPS = [[[3, 4], [50]], [[77], [8, 9, 300]], [[200, 200], [1]]]


def random_lens(model: StandardizedTransformer, layers: tuple[int, ...] = (0, 1, 2)) -> TunedLens:
    lens = TunedLens.of(model, layers)
    lens.take(as_tensors(random_translators(layers, model.hidden_size)))
    return lens


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_is_the_models_tail_after_the_translator(standardized: Standardized, family: str) -> None:
    model, twin = standardized(family), TunedTwin(family)
    lens, translators = random_lens(model), random_translators((0, 1, 2), HIDDEN_SIZE)
    residuals = [twin.residuals(ids) for ids in PROMPTS]
    hidden = torch.stack([each[:, -1] for each in residuals], dim=1)
    layers = (0, 2, 3)
    result = tuned_lens(
        model, lens, Latents(hidden[list(layers)], layers, reference=hidden[-1]), GROUPS, top_k=4, batch_size=2
    )
    examples = []
    for ids, each, groups in zip(PROMPTS, residuals, GROUPS, strict=True):
        translated = []
        for layer in layers:
            latent = each[layer, -1]
            if layer in translators:
                weight, bias = translators[layer]
                latent = latent + weight @ latent + bias
            translated.append(twin.logits(ids, len(ids) - 1, {NUM_LAYERS - 1: latent}))
        examples.append(expected(translated, groups, 4, twin.logits(ids)))
    assert result.layers == layers
    assert_equal(result.arrays(), examples, atol=1e-5)


def test_bfloat16_stays_within_two_hundredths_of_float32(model_folder: Callable[[str], Path]) -> None:
    results = []
    for dtype in ("float32", "bfloat16"):
        model = StandardizedTransformer(model_folder("llama"), dtype=dtype, device_map="cpu")
        hidden = torch.stack([TunedTwin("llama").residuals(ids)[:3, -1] for ids in PROMPTS], dim=1).to(model.dtype)
        results.append(tuned_lens(model, random_lens(model), Latents(hidden, (0, 1, 2)), GROUPS))
    np.testing.assert_allclose(np.exp(results[1].log_prob), np.exp(results[0].log_prob), atol=0.02, rtol=0)


def test_an_untrained_lens_is_the_logit_lens(standardized: Standardized) -> None:
    model = standardized("gpt2")
    hidden = torch.randn(NUM_LAYERS, 3, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    layers = range(NUM_LAYERS)
    lens = TunedLens.of(model)
    assert lens.layers == (0, 1, 2)
    tuned = tuned_lens(model, lens, Latents(hidden, layers), GROUPS).arrays()
    for name, values in logit_lens(model, Latents(hidden, layers), GROUPS).arrays().items():
        np.testing.assert_array_equal(tuned[name], values, err_msg=name)


def test_what_is_saved_is_loaded_and_the_same_bytes(standardized: Standardized, tmp_path: Path) -> None:
    model = standardized("llama")
    lens = random_lens(model, (0, 2))
    lens.save(tmp_path / "first")
    loaded = TunedLens.load(tmp_path / "first", model)
    loaded.save(tmp_path / "second")
    names = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert names == ["config.json", "lens.safetensors"]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert len({file.stat().st_mode for file in (tmp_path / "first").iterdir()}) == 1  # who may read one may read both
    assert loaded.layers == (0, 2)
    for name, value in lens.tensors().items():
        assert torch.equal(loaded.tensors()[name], value)
    text = (tmp_path / "first" / "config.json").read_text(encoding="utf-8")
    assert str(Path(model.repo_id).parent) not in text  # a folder's name, not the way to it
    assert json.loads(text)["model"] == Path(model.repo_id).name


def test_bias_only(standardized: Standardized, tmp_path: Path) -> None:
    model = standardized("llama")
    lens = TunedLens.of(model, [1], bias_only=True)
    bias = torch.randn(HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    lens.take({"bias.1": bias})
    hidden = torch.randn(1, 2, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(lens.translate(hidden, [1]), hidden + bias)
    lens.save(tmp_path)
    assert sorted(load_file(tmp_path / "lens.safetensors")) == ["bias.1"]
    assert torch.equal(TunedLens.load(tmp_path, model).translate(hidden, [1]), hidden + bias)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_digest_is_of_the_readout_alone(family: str) -> None:
    def digest(change: Callable[[torch.nn.Module], None], dtype: torch.dtype = torch.float32) -> str:
        module = tiny_model(family)
        with torch.no_grad():
            change(module)
        return unembedding_digest(StandardizedTransformer(module.to(dtype), tokenizer=tiny_tokenizer()))

    own = digest(lambda module: None)
    head = f"{'model.embed_tokens' if family == 'gemma2' else 'lm_head'}.weight"
    assert digest(lambda module: module.get_parameter(head)[7, 3].add_(0.5)) != own
    assert digest(lambda module: module.get_parameter("model.norm.weight")[3].add_(0.5)) != own
    assert digest(lambda module: module.get_parameter("model.layers.1.mlp.up_proj.weight").add_(0.5)) == own
    assert digest(lambda module: None, torch.bfloat16) == own
    if family == "gemma2":

        def cap(module: torch.nn.Module) -> None:
            module.config.final_logit_softcapping = 3.0  # type: ignore[union-attr, assignment]

        assert digest(cap) != own


def test_a_lens_of_another_model_is_refused(standardized: Standardized, tmp_path: Path) -> None:
    random_lens(standardized("llama")).save(tmp_path)
    finetuned = tiny_model("llama")
    with torch.no_grad():
        finetuned.get_parameter("lm_head.weight")[3, 3] += 1
    other = StandardizedTransformer(finetuned, tokenizer=tiny_tokenizer())
    with pytest.raises(InterpError, match=r"trained for .* with unembedding \w{12}, that of .* check=False"):
        TunedLens.load(tmp_path, other)
    assert TunedLens.load(tmp_path, other, check=False).layers == (0, 1, 2)
    deeper = StandardizedTransformer(tiny_model("llama", num_hidden_layers=5), tokenizer=tiny_tokenizer())
    with pytest.raises(InterpError, match=r"hidden_size 32 and 4 layers, .* hidden_size 32 and 5 layers"):
        TunedLens.load(tmp_path, deeper, check=False)


def test_what_is_no_lens_is_refused(standardized: Standardized, tmp_path: Path) -> None:
    model = standardized("llama")
    with pytest.raises(InterpError, match=r"found no config\.json.*python -m interp tune"):
        TunedLens.load(tmp_path, model)
    random_lens(model).save(tmp_path)
    config = tmp_path / "config.json"
    whole = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**whole, "version": 2}), encoding="utf-8")
    with pytest.raises(InterpError, match=r"version 1, got .* version 2"):
        TunedLens.load(tmp_path, model)
    config.write_text(json.dumps({**whole, "layers": [0, 1]}), encoding="utf-8")
    with pytest.raises(InterpError, match=r"differs in bias\.2, weight\.2"):
        TunedLens.load(tmp_path, model)
    config.write_text("[]", encoding="utf-8")
    with pytest.raises(InterpError, match="expected an object, got list"):
        TunedLens.load(tmp_path, model)
    config.write_text("{", encoding="utf-8")
    with pytest.raises(InterpError, match="is not JSON"):
        TunedLens.load(tmp_path, model)
    config.write_text(json.dumps(whole), encoding="utf-8")
    (tmp_path / "lens.safetensors").write_bytes(b"not it")
    with pytest.raises(InterpError, match="cannot be read"):
        TunedLens.load(tmp_path, model)


def test_errors_say_what_was_expected(standardized: Standardized) -> None:
    model = standardized("llama")
    lens = random_lens(model, (0, 2))
    hidden = torch.zeros(1, 2, HIDDEN_SIZE)
    with pytest.raises(InterpError, match=r"no translator for layers \[1\], only for \[0, 2\]"):
        lens.translate(hidden, [1])
    with pytest.raises(InterpError, match=r"= \(1, any, 32\), got \(1, 2, 31\)"):
        lens.translate(hidden[..., 1:], [0])
    with pytest.raises(InterpError, match="layer 3 is the model's last"):
        TunedLens.of(model, [1, 3])
    with pytest.raises(InterpError, match="ascending order"):
        TunedLens.of(model, [1, 0])
    with pytest.raises(InterpError, match="at least 2 layers"):
        TunedLens(8, 1)
    with pytest.raises(InterpError, match=r"bias\.0: expected shape \(32,\)"):
        lens.take({name: value[..., 1:] for name, value in lens.tensors().items()})
    with pytest.raises(InterpError, match="targets: expected one entry for each of 2 examples, got 3"):
        tuned_lens(model, lens, Latents(hidden, [0]), GROUPS)
    with pytest.raises(InterpError, match="reference: expected shape"):
        tuned_lens(model, lens, Latents(hidden, [0], reference=hidden[0, :1]), GROUPS[:2])
    with pytest.raises(InterpError, match="batch_size: expected at least 1"):
        tuned_lens(model, lens, Latents(hidden, [0]), GROUPS[:2], batch_size=0)


def test_the_lens_as_a_map(standardized: Standardized) -> None:
    lens = random_lens(standardized("llama"))
    hidden = torch.randn(2, 3, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    mapped = lens.as_map()(hidden, [2, 0])
    for place, (weight, bias) in enumerate([random_translators((0, 1, 2), HIDDEN_SIZE)[layer] for layer in (2, 0)]):
        torch.testing.assert_close(mapped[place], hidden[place] + hidden[place] @ weight.T + bias)

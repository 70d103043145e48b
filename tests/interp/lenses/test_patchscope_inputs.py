"""Patchscopes on prompts against plain transformers: sources read one by one, target prompts patched one by one."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import StandardizedTransformer
from interp.errors import InterpError
from interp.lenses import (
    patchscope_generate,
    patchscope_grid,
    patchscope_lens,
)
from interp.prompts import Prompt, TargetPrompt, entity_description_prompt
from interp.translators.affine_maps import AffineMap
from tests.interp.lenses.patched import PatchedTwin, wrapped
from tests.tiny import tiny_model, tiny_tokenizer

SOURCES = ["The quick brown fox", 'Deutsch: "Buch" - Italiano: "', "king", "The lazy dog jumps over"]
CAT = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
WORDS = {"a": ["dog", "fox"], "b": [7, 9]}


def ids_of(text: str) -> list[int]:
    ids: list[int] = tiny_tokenizer()(text).input_ids
    return ids


def groups_of(model: StandardizedTransformer, words: dict[str, Any] = WORDS) -> list[list[int]]:
    prompt = Prompt.from_strings("", words, model.tokenizer)
    return [list(tokens) for tokens in prompt.target_tokens.values()]


def expected_lens(twin: PatchedTwin, latents: Tensor, ids: list[int], at: list[int], groups: Any) -> np.ndarray:
    """(layer, group), probabilities; latents (layer, position, hidden)."""
    found = [
        np.exp(twin.log_probs(twin.logits(ids, at, {layer: latent}), groups)) for layer, latent in enumerate(latents)
    ]
    return np.stack(found)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bloom"])
def test_the_lens_reads_the_last_token_and_writes_over_the_placeholder(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, twin = wrapped(name), PatchedTwin(name)
    monkeypatch.setattr(import_module("interp.lenses.sources"), "_AT_ONCE", 3)
    found = patchscope_lens(model, SOURCES, "cat", targets=WORDS, top_k=2)
    assert found.group_names == ("a", "b")
    target = ids_of(CAT)
    for example, source in enumerate(SOURCES):
        latents = twin.residuals(ids_of(source))[:, -1:]
        wanted = expected_lens(twin, latents, target, [len(target) - 1], groups_of(model))
        np.testing.assert_allclose(np.exp(found.log_prob[example]), wanted, atol=1e-5, rtol=0)
        own = twin.logits(ids_of(source)).log_softmax(-1)
        assert found.model_top_id[example] == int(own.argmax())
        np.testing.assert_allclose(
            found.surprisal[example], -own[torch.tensor(found.top_ids[example, :, 0]).long()], atol=1e-4, rtol=1e-4
        )


def test_means_several_positions_and_a_prompt_for_each_example() -> None:
    model, twin = wrapped("llama"), PatchedTwin("llama")
    sources: Any = [[SOURCES[0], SOURCES[3]], [ids_of(SOURCES[1])], [SOURCES[2], ids_of(SOURCES[0]), SOURCES[1]]]
    targets = [CAT, "The lazy dog", "king king\n1135 1135\n?"]
    found = patchscope_lens(
        model,
        sources,
        targets,
        source_positions=[-1, 0],
        target_positions=["last", 1],
        targets=WORDS,
        patch="from_layer",
        layers=[1, 2],
    )
    assert np.isnan(found.surprisal).all()
    for example, several in enumerate(sources):
        read = [twin.residuals(one if isinstance(one, list) else ids_of(one))[:, [-1, 0]] for one in several]
        mean, ids = torch.stack(read).mean(0), ids_of(targets[example])
        for place, layer in enumerate((1, 2)):
            written = {later: mean[later] for later in range(layer, 4)}
            logits = twin.logits(ids, [len(ids) - 1, 1], written)
            wanted = np.exp(twin.log_probs(logits, groups_of(model)))
            np.testing.assert_allclose(np.exp(found.log_prob[example, place]), wanted, atol=1e-5, rtol=0)


def test_groups_are_those_of_the_prompts() -> None:
    model = wrapped("llama")
    tokenizer = model.tokenizer
    sources = [Prompt.from_strings(text, {"word": [text.split()[-1][:2]]}, tokenizer) for text in SOURCES[:2]]
    given = patchscope_lens(model, sources, "cat", targets=[{"word": [text.split()[-1][:2]]} for text in SOURCES[:2]])
    np.testing.assert_array_equal(patchscope_lens(model, sources, "cat").log_prob, given.log_prob)
    target = TargetPrompt(Prompt.from_strings("The x is", WORDS, tokenizer), 2)
    assert patchscope_lens(model, sources, target).group_names == ("a", "b")
    assert patchscope_lens(model, "king", "cat").log_prob.shape == (1, 4, 0)


def test_another_model_as_the_target() -> None:
    """A source of another width and depth; the map goes from one to the other."""
    target, twin = wrapped("llama"), PatchedTwin("llama")
    module: Any = tiny_model("qwen2", hidden_size=48, num_hidden_layers=6)
    source = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(6, 32, 48, generator=generator) / 7, torch.randn(6, 32, generator=generator)
    mapping = AffineMap(tuple(range(6)), weight, bias)
    with torch.no_grad():
        outputs = [
            module(input_ids=torch.tensor([ids_of(text)]), use_cache=False, output_hidden_states=True)
            for text in SOURCES
        ]
    ids = ids_of(CAT)
    found = patchscope_lens(target, SOURCES, "cat", source_model=source, mapping=mapping, targets=WORDS)
    grid = patchscope_grid(
        target, SOURCES, "cat", source_model=source, mapping=mapping, targets=WORDS, source_layers=[0, 4]
    )
    texts = patchscope_generate(
        target, SOURCES, "cat", source_model=source, mapping=mapping, layers=[2], max_new_tokens=3
    )
    assert found.layers == (0, 1, 2, 3) and grid.along("source_layer") == (0, 4)
    for example, output in enumerate(outputs):
        read = torch.stack([hidden[0, -1] for hidden in output.hidden_states[1:6]])  # the sixth is behind the norm
        mapped = (weight[:5] @ read[..., None])[..., 0] + bias[:5]
        wanted = expected_lens(twin, mapped[:4, None], ids, [len(ids) - 1], groups_of(target))
        np.testing.assert_allclose(np.exp(found.log_prob[example]), wanted, atol=1e-5, rtol=0)
        for place, layer in enumerate((0, 4)):
            latents = mapped[layer].expand(4, 1, -1)
            wanted = expected_lens(twin, latents, ids, [len(ids) - 1], groups_of(target))
            np.testing.assert_allclose(np.exp(grid.log_prob[example, place]), wanted, atol=1e-5, rtol=0)
        own = output.logits[0, -1].double().log_softmax(-1)
        assert found.model_top_id[example] == grid.model_top_id[example] == int(own.argmax())
        for result in (found, grid):
            tops = torch.tensor(result.top_ids[example, ..., 0]).long()
            np.testing.assert_allclose(result.surprisal[example], -own[tops], atol=1e-4, rtol=1e-4)
        wanted_ids, _ = twin.greedy(ids, [len(ids) - 1], {2: mapped[2, None]}, 3, stop=2)
        assert list(texts.ids[example][0]) == wanted_ids
    with pytest.raises(InterpError, match="Latents of another model need a `mapping`"):
        patchscope_lens(target, SOURCES, "cat", source_model=source, layers=[0])
    with pytest.raises(InterpError, match=r"the source model has layers 0 to 3, latents of \[4, 5\] are needed"):
        patchscope_lens(source, SOURCES, "cat", source_model=target, patch="from_layer", layers=[2])


def test_targets_of_another_vocabulary_are_not_read_as_if_they_were_of_this_one() -> None:
    target, tokenizer = wrapped("llama"), tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    source = StandardizedTransformer(tiny_model("qwen2"), tokenizer=tokenizer, verify=False)
    prompts = [Prompt.from_strings(text, WORDS, tokenizer) for text in SOURCES]
    into = [Prompt.from_strings(CAT, WORDS, target.tokenizer) for _ in SOURCES]
    with pytest.raises(InterpError, match="tokens of the source model, whose vocabulary is another"):
        patchscope_lens(target, prompts, "cat", source_model=source)
    wanted = patchscope_lens(target, SOURCES, "cat", source_model=source, targets=WORDS)
    for found in (
        patchscope_lens(target, prompts, "cat", source_model=source, targets=WORDS),
        patchscope_lens(target, prompts, into, source_model=source),
    ):
        np.testing.assert_array_equal(found.log_prob, wanted.log_prob)
    alike = StandardizedTransformer(tiny_model("qwen2"), tokenizer=tiny_tokenizer(), verify=False)
    prompts = [Prompt.from_strings(text, WORDS, alike.tokenizer) for text in SOURCES]
    found = patchscope_lens(target, prompts, "cat", source_model=alike)
    np.testing.assert_array_equal(found.log_prob, wanted.log_prob)


def test_token_ids_are_one_source() -> None:
    model, ids = wrapped("llama"), ids_of(SOURCES[0])
    wanted = patchscope_lens(model, [ids, ids], "cat", targets=WORDS).log_prob
    forms: list[Any] = [ids, np.array(ids), torch.tensor(ids), [np.array(ids)], [[torch.tensor(ids), ids]]]
    for form in forms:
        found = patchscope_lens(model, form, "cat", targets=WORDS)
        np.testing.assert_allclose(found.log_prob, wanted[:1], atol=1e-5)


def test_generation_from_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, twin = wrapped("mistral"), PatchedTwin("mistral")
    target = entity_description_prompt([("Oslo", "city")])
    given: dict[str, Any] = dict(layers=[3, 0], max_new_tokens=4)
    found = patchscope_generate(model, SOURCES, target, **given)
    ids = ids_of(target.text)
    for example, source in enumerate(SOURCES):
        for place, layer in enumerate((3, 0)):
            latent = twin.residuals(ids_of(source))[layer, -1:]
            wanted, _ = twin.greedy(ids, [len(ids) - 1], {layer: latent}, 4, stop=2)
            assert list(found.ids[example][place]) == wanted
    drawn = patchscope_generate(model, SOURCES, target, **given, temperature=1.0, seed=4)
    monkeypatch.setattr(import_module("interp.lenses.sources"), "_AT_ONCE", 1)
    assert patchscope_generate(model, SOURCES, target, **given, temperature=1.0, seed=4).ids == drawn.ids
    assert drawn.ids != found.ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": []}, "source: expected at least one"),
        ({"source": ["a", []]}, "source: expected at least one"),
        ({"target_prompts": ["cat", "king"]}, "expected one, or one for each of 3 examples, got 2"),
        (
            {"source_positions": [0, -1]},
            "target_positions: expected 2 of each target prompt, as many as tokens of a source are read, got 1",
        ),
        ({"source_positions": "all"}, "source_positions: source prompt 0 has 8 such tokens, others have 15"),
        ({"layers": [4]}, "the source model has layers 0 to 3"),
        ({"layers": []}, "layers: expected at least one"),
        ({"target_positions": "query.last"}, "query"),
        ({"target_prompts": [["a", "b"]]}, r"expected a target prompt, a text, a Prompt or a TargetPrompt, got \['a"),
        ({"targets": "dog"}, "targets: expected names with words"),
        ({"policy": "exact"}, "policy: 'exact' says which tokens count as a word of `targets`, and none are given"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = dict(source=SOURCES[:3], target_prompts="cat")
    with pytest.raises(InterpError, match=message):
        patchscope_lens(wrapped("llama"), **{**given, **changes})

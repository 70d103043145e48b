"""The lenses on attention take prompts: what they resolve is what the lenses are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from interp.activations import collect
from interp.errors import InterpError
from interp.lenses import (
    Latents,
    attention_knockout,
    attention_object_lens,
)
from interp.model import StandardizedTransformer
from interp.prompts import Prompt, encode
from interp.results import LensResult
from interp.sites import Site

Standardized = Callable[[str], StandardizedTransformer]
TEXTS = ['Deutsch: "Buch" - Italiano: "', 'English: "the lazy dog" - Français: "', "hello hello\n?"]
MARKED = ["Buch", "the lazy dog", "hello"]


def prompts_of(model: StandardizedTransformer, *, targets: bool = True) -> list[Prompt]:
    made = []
    for text, word in zip(TEXTS, MARKED, strict=True):
        start = text.index(word)
        prompt = Prompt.from_strings(text, {"libro": ["libro"], "chien": ["chien", "dog"]}, model.tokenizer)
        spans = {"word": (start, start + len(word))}
        made.append(Prompt(text, prompt.targets if targets else {}, spans))
    return made


def assert_same(found: LensResult, wanted: LensResult) -> None:
    for name, values in wanted.arrays().items():
        np.testing.assert_allclose(found.arrays()[name], values, atol=1e-5, rtol=1e-5, err_msg=name)


def test_knockout_of_marked_characters(standardized: Standardized) -> None:
    model = standardized("llama")
    prompts = prompts_of(model)
    encoded = [prompt.encode(model.tokenizer) for prompt in prompts]
    found = attention_knockout(
        model, prompts, {"word": "word.all", "ends": ["first", -2], "before": ":-1"}, window=2, layers=[0, 2]
    )
    assert found.group_names == ("libro", "chien")
    assert dict(found.coordinates) == {"example": (0, 1, 2), "window": (0, 2), "block": ("word", "ends", "before")}
    blocks: list[Any] = []
    for one in encoded:
        length = len(one.input_ids)
        blocks.append({"word": range(*one.spans["word"]), "ends": [0, length - 2], "before": range(length - 1)})
    assert len({len(block["word"]) for block in blocks}) > 1  # spans of different lengths
    groups = [list(prompt.target_tokens.values()) for prompt in prompts]
    ids = [one.input_ids for one in encoded]
    assert_same(found, attention_knockout(model, ids, blocks, groups, window=2, layers=[0, 2]))


def test_knockout_of_some_heads(standardized: Standardized) -> None:
    model = standardized("gpt2")
    heads = {0: [1], 2: [0, 3]}
    found = attention_knockout(model, TEXTS[0], {"first": 0}, window=2, layers=[0, 1], heads=heads)
    ids = encode(model.tokenizer, TEXTS[0]).input_ids
    assert_same(found, attention_knockout(model, [ids], [{"first": [0]}], window=2, layers=[0, 1], heads=heads))


def test_knockout_of_texts_measures_the_models_own_answer(standardized: Standardized) -> None:
    model = standardized("gpt2")
    found = attention_knockout(model, TEXTS[0], {"first": 0}, window=None, query_positions="-2:")
    assert found.group_names == ("own",)
    ids = encode(model.tokenizer, TEXTS[0]).input_ids
    last = [[len(ids) - 2, len(ids) - 1]]
    assert_same(found, attention_knockout(model, [ids], [{"first": [0]}], window=None, query_positions=last))


def object_by_hand(model: StandardizedTransformer, ids: list[list[int]], at: list[int], **given: Any) -> LensResult:
    sites = [*(Site("attn_in", layer) for layer in range(4)), Site("resid_post", 3)]
    read = collect(model, ids, sites, [[position] for position in at])
    return attention_object_lens(
        model, Latents(read["attn_in"][:, :, 0], reference=read["resid_post"][0, :, 0]), **given
    )


def test_object_lens_from_each_source_into_its_target(
    standardized: Standardized, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.lenses.sources._AT_ONCE", 2)
    model = standardized("llama")
    sources, into = prompts_of(model), ["cat -> cat", "king king", "Le chien paresseux"]
    found = attention_object_lens(model, sources, into, source_positions="word.last", target_positions=1, window=2)
    assert found.group_names == ("libro", "chien")  # of the sources: the target prompts are texts
    encoded = [prompt.encode(model.tokenizer) for prompt in sources]
    wanted = object_by_hand(
        model,
        [one.input_ids for one in encoded],
        [one.spans["word"][1] - 1 for one in encoded],
        target_prompts=[encode(model.tokenizer, text).input_ids for text in into],
        target_positions=[[1]] * 3,
        targets=[list(prompt.target_tokens.values()) for prompt in sources],
        window=2,
    )
    assert_same(found, wanted)
    assert np.isfinite(found.surprisal).all()


@pytest.mark.parametrize("one", ["source", "target"])
def test_object_lens_with_one_prompt_for_all(one: str, standardized: Standardized) -> None:
    model = standardized("gpt_neox")
    sources: Any = TEXTS[0] if one == "source" else TEXTS
    into: Any = prompts_of(model) if one == "source" else prompts_of(model)[0]
    found = attention_object_lens(model, sources, into, target_positions="word.last")
    from_each = [TEXTS[0]] * 3 if one == "source" else TEXTS
    into_each = into if one == "source" else [into] * 3
    ids = [encode(model.tokenizer, text).input_ids for text in from_each]
    targets = [prompt.encode(model.tokenizer) for prompt in into_each]
    wanted = object_by_hand(
        model,
        ids,
        [len(own) - 1 for own in ids],
        target_prompts=[own.input_ids for own in targets],
        target_positions=[[own.spans["word"][1] - 1] for own in targets],
        targets=[list(prompt.target_tokens.values()) for prompt in into_each],
    )
    assert_same(found, wanted)


@pytest.mark.parametrize("one", [None, "source", "target"])
def test_object_lens_at_several_tokens(
    one: str | None, standardized: Standardized, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.lenses.sources._AT_ONCE", 2)
    model = standardized("gpt2")
    marked = prompts_of(model)
    sources: Any = TEXTS[0] if one == "source" else TEXTS
    into: Any = marked[0] if one == "target" else marked
    found = attention_object_lens(
        model, sources, into, source_positions=["first", "-2:"], target_positions=["word.first", -2, "last"], window=3
    )
    ids = [encode(model.tokenizer, text).input_ids for text in ([TEXTS[0]] * 3 if one == "source" else TEXTS)]
    targets = [prompt.encode(model.tokenizer) for prompt in ([marked[0]] * 3 if one == "target" else marked)]
    sites = [*(Site("attn_in", layer) for layer in range(4)), Site("resid_post", 3)]
    read = collect(model, ids, sites, [[0, len(own) - 2, len(own) - 1] for own in ids])
    wanted = attention_object_lens(
        model,
        Latents(read["attn_in"], reference=read["resid_post"][0, :, -1]),
        [own.input_ids for own in targets],
        [[own.spans["word"][0], len(own.input_ids) - 2, len(own.input_ids) - 1] for own in targets],
        [list(prompt.target_tokens.values()) for prompt in ([marked[0]] * 3 if one == "target" else marked)],
        window=3,
    )
    assert_same(found, wanted)


def test_targets_by_name(standardized: Standardized) -> None:
    model = standardized("llama")
    named = {"libro": ["libro"], "chien": ["chien", "dog"]}
    plain, given = (prompts_of(model, targets=with_targets) for with_targets in (False, True))
    for lens in (
        lambda prompts, **more: attention_knockout(model, prompts, {"word": "word.all"}, window=1, **more),
        lambda prompts, **more: attention_object_lens(model, TEXTS, prompts, **more),
    ):
        found, wanted = lens(plain, targets=named), lens(given)
        assert found.group_names == wanted.group_names == ("libro", "chien")
        assert_same(found, wanted)


def test_errors(standardized: Standardized) -> None:
    model = standardized("llama")
    with pytest.raises(InterpError, match="target_prompts: expected one, or one for each of 2 examples, got 3"):
        attention_object_lens(model, TEXTS[:2], TEXTS)
    with pytest.raises(InterpError, match="target_positions: expected 2 of each target prompt, as many as tokens of a"):
        attention_object_lens(model, TEXTS, TEXTS, source_positions="-2:")
    with pytest.raises(
        InterpError, match=r"target_positions: expected 1 of each target prompt, .* got [0-9]+ of target"
    ):
        attention_object_lens(model, TEXTS, TEXTS, target_positions="all")
    with pytest.raises(
        InterpError, match=r"target_positions: expected 2 of each target prompt, .* got 3 of target prompt 0"
    ):
        attention_object_lens(model, TEXTS, TEXTS, source_positions="-2:", target_positions="-3:")
    words = prompts_of(model)
    lengths = [len(range(*prompt.encode(model.tokenizer).spans["word"])) for prompt in words]
    short = next(row for row, length in enumerate(lengths) if length < max(lengths))
    with pytest.raises(InterpError, match=f"got {lengths[short]} of target prompt {short}, 'word.all'"):
        attention_object_lens(model, TEXTS[1], words, source_positions=f":{max(lengths)}", target_positions="word.all")
    with pytest.raises(InterpError, match="no span 'word'"):
        attention_knockout(model, TEXTS, {"word": "word.all"}, window=1)
    with pytest.raises(InterpError, match="blocks: expected names with positions"):
        attention_knockout(model, TEXTS, "first", window=1)  # type: ignore[arg-type]
    for lens in (
        lambda **more: attention_knockout(model, TEXTS, {"a": "first"}, window=1, **more),
        lambda **more: attention_object_lens(model, TEXTS, TEXTS, **more),
    ):
        lens(targets={"a": [7]}, policy="exact")
        with pytest.raises(InterpError, match="policy: 'exact' says"):
            lens(policy="exact")
    with torch.no_grad(), pytest.raises(InterpError, match="expected blocks with names"):
        attention_knockout(model, TEXTS, {}, window=1)

"""Every lens on prompts reads a tokenizer's output as its ids; the values are transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BatchEncoding

from interp import StandardizedTransformer
from interp.activations import collect
from interp.errors import InterpError
from interp.lenses import (
    Latents,
    attention_knockout,
    attention_object_lens,
    direct_logit_attribution,
    logit_lens,
    patchscope_generate,
    patchscope_grid,
    patchscope_lens,
)
from interp.sites import Site
from interp.translators import GivenSequences, TunedLens, evaluate_tuned_lens
from tests.families import build
from tests.interp.lenses.patched import wrapped
from tests.made import one_each
from tests.tiny import tiny_tokenizer

TEXTS = ["The quick brown fox", "cat", "The lazy dog jumps over"]
INTO = "cat -> cat\n1135 -> 1135\n?"
IDS: list[list[int]] = tiny_tokenizer()(TEXTS)["input_ids"]
Lens = Callable[[StandardizedTransformer, Any], Any]

LENSES: dict[str, Lens] = {
    "logit lens": lambda model, prompts: logit_lens(model, prompts).arrays(),
    "attribution": lambda model, prompts: direct_logit_attribution(model, prompts, {"a": [7]}).arrays(),
    "knock-out": lambda model, prompts: attention_knockout(
        model, prompts, {"start": "first", "last": "last"}, window=2
    ).arrays(),
    "patchscope sources": lambda model, prompts: patchscope_lens(model, prompts, INTO).arrays(),
    "patchscope targets": lambda model, prompts: patchscope_lens(
        model, TEXTS, prompts, target_positions="last"
    ).arrays(),
    "grid": lambda model, prompts: patchscope_grid(model, prompts, INTO).arrays(),
    "generation": lambda model, prompts: {"ids": patchscope_generate(model, prompts, INTO, max_new_tokens=2).ids},
    "object sources": lambda model, prompts: attention_object_lens(model, prompts, INTO).arrays(),
    "object targets": lambda model, prompts: attention_object_lens(model, INTO, prompts).arrays(),
}


def encoded(side: str, kind: str | None) -> BatchEncoding:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    return tokenizer(TEXTS, padding=True, return_tensors=kind)


def assert_alike(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(values), err_msg=name)


@pytest.mark.parametrize("lens", LENSES)
def test_an_encoding_is_its_ids(lens: str) -> None:
    model, run = wrapped("llama"), LENSES[lens]
    wanted = run(model, IDS)
    for given in (
        encoded("left", "pt"),
        encoded("right", "np"),
        dict(encoded("left", None)),
        [tiny_tokenizer()(text, return_tensors="pt") for text in TEXTS],
    ):
        assert_alike(run(model, given), wanted)
    assert_alike(run(model, pd.Series(TEXTS)), run(model, TEXTS))
    assert_alike(run(model, (text for text in TEXTS)), run(model, TEXTS))  # read once, though it is used twice


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("given", [{"a": "cat"}, pd.DataFrame({"text": TEXTS}), {"cat"}, None, 5, b"cat", [None]])
def test_what_is_no_list_of_prompts_is_refused(lens: str, given: Any) -> None:
    with pytest.raises(InterpError, match=r"^(source|target_prompts): expected texts, Prompts or lists"):
        LENSES[lens](wrapped("llama"), given)


@torch.no_grad()
def test_the_natural_line_gives_what_transformers_gives() -> None:
    """A chat by its template: transformers returns a `BatchEncoding`."""
    tokenizer, plain = tiny_tokenizer(), build("llama")
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
    given = tokenizer.apply_chat_template([{"role": "user", "content": "The quick brown fox"}])
    assert isinstance(given, BatchEncoding)
    expected = plain(torch.tensor([given["input_ids"]])).logits[0, -1].log_softmax(-1)[7]
    lens = logit_lens(wrapped("llama"), given, targets={"a": [7]})
    assert lens.axes == ("example", "layer")
    np.testing.assert_allclose(np.asarray(lens.log_prob)[0, -1, 0], float(expected), atol=1e-5)


@torch.no_grad()
def test_what_is_collected_of_an_encoding_is_what_transformers_gives() -> None:
    model, plain = wrapped("llama"), build("llama")
    for side in ("left", "right"):
        values = collect(model, encoded(side, "pt"), [Site("resid_post", 1)], [[0, len(ids) - 1] for ids in IDS])  # type: ignore[arg-type]
        for row, ids in enumerate(IDS):
            states = plain(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
            torch.testing.assert_close(values["resid_post"][0, row], states[[0, -1]], atol=1e-5, rtol=1e-4)


def test_target_ids_and_sequences_of_an_encoding() -> None:
    model, latents = wrapped("llama"), torch.ones(4, 3, 32)
    at = [len(ids) - 1 for ids in IDS]
    groups = [[[7]]] * 3
    assert_alike(
        patchscope_lens(model, Latents(latents, range(4)), encoded("left", "pt"), one_each(at), groups).arrays(),  # type: ignore[arg-type]
        patchscope_lens(model, Latents(latents, range(4)), IDS, one_each(at), groups).arrays(),
    )
    lens, tokenizer = TunedLens.of(model), tiny_tokenizer()
    given = [GivenSequences.of(tokenizer, ids) for ids in (encoded("right", "pt"), IDS)]  # type: ignore[arg-type]
    found, wanted = (evaluate_tuned_lens(model, lens, each).to_dict() for each in given)
    assert found == wanted
    for wrong in (TEXTS, encoded("left", "pt"), None):
        with pytest.raises(InterpError, match="sequences: expected `TokenSequence`s"):
            evaluate_tuned_lens(model, lens, wrong)  # type: ignore[arg-type]
    for wrong in ({"a": "cat"}, TEXTS, None):
        with pytest.raises(InterpError, match=r"^input_ids"):
            GivenSequences.of(tokenizer, wrong)  # type: ignore[arg-type]

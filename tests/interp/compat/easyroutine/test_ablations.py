"""Ablation queries: against plain transformers by hand, in batches, in generation, in every form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from interp.compat.easyroutine import ExtractionConfig, HookedModel
from interp.compat.easyroutine.ablation_queries import ablations
from interp.compat.easyroutine.input_batch import InputBatch
from interp.errors import InterpError
from tests.interp.compat.easyroutine.edited_by_hand import IDS, PatternChange, batch_of, changed, logits_of, written


def query(kind: str, couples: list[Any], element: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"type": kind, "head-layer-couple": couples}
    return found if element is None else {**found, "elem-to-ablate": element}


def by_hand(kind: str, couples: list[list[int]], element: list[int] | None, prompt: int) -> PatternChange:
    """What a query does to the pattern, of a prompt of so many tokens; `element` counts from its start."""

    def change(layer: int, pattern: Tensor) -> None:
        for head, own_layer in couples:
            if own_layer != layer:
                continue
            own = pattern[0, head]
            if kind in ("std", "flash-attn"):
                own[:, element] = 0
            elif kind == "full-head":
                own[:] = 0
            else:
                for token in range(len(own)) if element is None else element:
                    kept = own[token, token].clone()
                    own[token] = 0
                    own[token, token] = kept

    return change


COUPLES = [[1, 0], [3, 2], [0, 1], [1, 1], [2, 1]]  # of layer 1 a whole group of heads, and one head of the other
CASES: list[tuple[str, str | None, Any]] = [
    ("std", "@last-2", lambda length: [length - 2]),
    ("std", "@first", lambda length: [0]),
    ("full-head", None, lambda length: None),
    ("keep-self-attn", None, lambda length: None),
    ("keep-self-attn", "@last-2", lambda length: [length - 2]),
    ("flash-attn", "@last-2", lambda length: [length - 2]),
]


@pytest.mark.parametrize(("kind", "element", "tokens"), CASES, ids=[f"{kind} {name}" for kind, name, _ in CASES])
def test_acts_behind_the_softmax_in_the_named_heads_of_every_row(
    llama: HookedModel, by_transformers: Any, kind: str, element: str | None, tokens: Any
) -> None:
    asked = [query(kind, COUPLES, element)]
    left, right = (llama.forward(batch_of(IDS, side), ablation_queries=asked)["logits"] for side in ("left", "right"))
    for row, ids in enumerate(IDS):
        with changed(by_transformers, by_hand(kind, COUPLES, tokens(len(ids)), len(ids))):
            expected = logits_of(by_transformers, ids)
        assert not torch.allclose(expected, logits_of(by_transformers, ids), atol=1e-3)
        torch.testing.assert_close(left[row], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(right[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    ("kind", "element", "tokens"), CASES[1:], ids=[f"{kind} {name}" for kind, name, _ in CASES[1:]]
)
def test_generation_with_and_without_a_key_value_cache(
    llama: HookedModel, by_transformers: Any, kind: str, element: str | None, tokens: Any, use_cache: bool
) -> None:
    config = GenerationConfig(
        max_new_tokens=3, use_cache=use_cache, return_dict_in_generate=True, output_logits=True, eos_token_id=None
    )
    given = batch_of(IDS, "right")
    found = llama.generate(given, config, ablation_queries=[query(kind, COUPLES, element)])
    for row, ids in enumerate(IDS):
        steps = written(by_transformers, ids, 3, lambda _, ids=ids: by_hand(kind, COUPLES, tokens(len(ids)), len(ids)))
        for step, expected in enumerate(steps):
            torch.testing.assert_close(found["logits"][step][row], expected, rtol=1e-4, atol=1e-4)
        assert found["sequences"][row, -3:].tolist() == [int(logits.argmax()) for logits in steps]
        assert found["sequences"][row, -3 - len(ids) : -3].tolist() == ids


@pytest.mark.parametrize("family", ["mistral", "gpt2", "gemma2"])
def test_windows_and_other_attention_over_a_cache(hooked: Callable[[str], HookedModel], family: str) -> None:
    model, given = hooked(family), batch_of([[*IDS[0], 40, 41, 42], IDS[1]])
    asked = [query("std", [[1, 0], [3, 2]], "@last-2"), query("flash-attn", ["all"], "@first")]
    asked += [query("keep-self-attn", [[0, 3]])]
    config: dict[str, Any] = dict(max_new_tokens=5, return_dict_in_generate=True, output_logits=True, eos_token_id=None)
    whole, cached = (
        model.generate(given, ablation_queries=asked, use_cache=use_cache, **config)["logits"]
        for use_cache in (False, True)
    )
    for own, other in zip(whole, cached, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(whole[3], model.generate(given, **config)["logits"][3], atol=1e-2)


@pytest.mark.parametrize(("kind", "is_text"), [("block-img-txt", True), ("block-img-img", False)])
def test_attention_to_images(llama: HookedModel, by_transformers: Any, kind: str, is_text: bool) -> None:
    images = [[1, 2, 4], [2]]
    batch = InputBatch.of(llama.standardized, IDS)
    batch.call("all-image", images)
    batch.call(
        "all-text",
        [[token for token in range(len(ids)) if token not in own] for ids, own in zip(IDS, images, strict=True)],
    )

    def change_of(own: list[int]) -> PatternChange:
        def change(layer: int, pattern: Tensor) -> None:
            for head, own_layer in COUPLES:
                if own_layer == layer:
                    rows = [row for row in range(pattern.shape[2]) if (row not in own) == is_text]
                    pattern[0, head][torch.tensor(rows)[:, None], own] = 0

        return change

    for name in (kind, f"flash-{kind}"):
        changes = ablations([query(name, COUPLES)], batch, llama.standardized)
        run = llama.standardized.run(IDS, changes, max_new_tokens=3, stop_ids=[])
        assert run.new_logits is not None
        for row, (ids, own) in enumerate(zip(IDS, images, strict=True)):
            for step, expected in enumerate(written(by_transformers, ids, 3, lambda _, own=own: change_of(own))):
                torch.testing.assert_close(run.new_logits[row, step], expected, rtol=1e-4, atol=1e-4)


def test_every_form_is_read(llama: HookedModel) -> None:
    given = batch_of(IDS)
    rows = [query("std", [[1, 0]], "@last"), query("full-head", [[0, 2], [3, 2]])]
    expected = llama.forward(given, ablation_queries=rows)["logits"]
    frame = pd.DataFrame(rows)
    by_head = pd.DataFrame(
        {
            "type": ["std", "full-head", "full-head"],
            "elem-to-ablate": ["@last", None, None],
            "head": [1, 0, 3],
            "layer": [0, 2, 2],
        }
    )
    columns = {
        "type": ["std", "full-head"],
        "elem-to-ablate": ["@last", None],
        "head-layer-couple": [[[1, 0]], [[0, 2], [3, 2]]],
    }
    for form in (frame, by_head, frame.to_dict(), frame.to_dict("index"), columns, tuple(rows)):
        assert torch.equal(llama.forward(given, ablation_queries=form)["logits"], expected)
    first = llama.forward(given, ablation_queries=rows[:1])["logits"]
    assert torch.equal(llama.forward(given, ablation_queries=rows[0])["logits"], first)
    assert not torch.allclose(first, expected, atol=1e-3)
    every = [[head, layer] for layer in range(4) for head in range(4)]
    named, short = (llama(given, ablation_queries=query("std", one, "@last"))["logits"] for one in (every, ["all"]))
    assert torch.equal(named, short)


def test_several_elements_and_the_text_of_a_token(llama: HookedModel, by_transformers: Any) -> None:
    text = llama.hf_tokenizer.convert_ids_to_tokens(250)
    asked = [query("std", [[1, 0]], text), query("std", [[1, 0], [2, 0]], "@last-2")]

    def change(layer: int, pattern: Tensor) -> None:
        if layer == 0:
            pattern[0, 1, :, [2, 5]] = 0
            pattern[0, 2, :, 5] = 0

    with changed(by_transformers, change):
        expected = logits_of(by_transformers, IDS[0])
    found = llama.forward(batch_of(IDS[:1]), ablation_queries=asked)["logits"][0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_is_extracted_is_ablated(llama: HookedModel) -> None:
    given = dict(
        extraction_config=ExtractionConfig(extract_resid_out=True), ablation_queries=query("full-head", ["all"])
    )
    cache = llama.extract_cache([batch_of(IDS), batch_of(IDS[1:])], ["last"], **given)
    once = llama.forward(batch_of(IDS), ["last"], **given)
    assert torch.equal(cache["resid_out_3"][:2], once["resid_out_3"]) and len(cache["resid_out_3"]) == 3
    assert not torch.allclose(
        once["resid_out_3"], llama.forward(batch_of(IDS), ["last"], extract_resid_out=True)["resid_out_3"]
    )


REFUSED: list[tuple[Any, str]] = [
    (query("stdd", ["all"], "@last"), r"ablation_queries\[0\]: type 'stdd' is unknown. Did you mean 'std'"),
    (query("std", ["all"]), "std needs elem-to-ablate"),
    (query("std", ["all"], "@lats"), "token position 'lats'"),
    (query("std", ["all"], "@position-group-1"), "needs split_positions"),
    (query("std", ["all"], "last"), "'last' is not one token of this model. For the name of a position write '@last'"),
    (query("std", [[0, 4]], "@last"), "heads are 0 to 3 and layers 0 to 3, the head first"),
    (query("std", [[4, 0]], "@last"), "heads are 0 to 3"),
    (query("std", [], "@last"), r"expected \[\[head, layer\], ...\] or \['all'\]"),
    (query("std", [[0]], "@last"), r"expected \[head, layer\], got"),
    (query("block-img-txt", ["all"]), "has no image"),
    (query("block-img-txt-wout-special-pixtral", ["all"]), "six tokens by their places in the prompts of one paper"),
    ({"type": "std", "head-layer-couple": ["all"], "element": "@last"}, "a query has no 'element'"),
    ([{"head-layer-couple": ["all"]}], "a query needs type"),
    (["std"], "expected a dictionary with type"),
    (3, "expected a list of dictionaries, a dictionary or a DataFrame"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refuses(llama: HookedModel, given: Any, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        llama.forward(batch_of(IDS), ablation_queries=given)


def test_an_element_without_effect_is_told_of(llama: HookedModel, caplog: pytest.LogCaptureFixture) -> None:
    llama.forward(batch_of(IDS), ablation_queries=query("full-head", [[0, 0]], "@last"))
    assert "full-head takes no elem-to-ablate" in caplog.text

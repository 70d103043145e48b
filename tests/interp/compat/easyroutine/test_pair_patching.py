"""Patching queries and `compute_patching`: against plain transformers by hand, and what must hold of any patch."""

from __future__ import annotations

import copy
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from interp.compat.easyroutine import HookedModel
from interp.errors import InterpError
from tests.interp.compat.easyroutine.edited_by_hand import batch_of, changed, logits_of

BASE = [[1, 17, 250, 33, 94, 12, 7], [1, 88, 5, 260], [1, 300, 41, 62, 18]]
TARGET = [[1, 64, 120, 33, 18, 12, 90], [1, 19, 203, 77], [1, 55, 41, 62, 251]]


def loader(rows: list[list[int]], size: int = 1) -> list[dict[str, Any]]:
    return [
        {**batch_of(rows[at : at + size]), "label": torch.arange(at, min(at + size, len(rows)))}
        for at in range(0, len(rows), size)
    ]


def query(element: str, layers: Any, kind: str) -> dict[str, Any]:
    return {"patching_elem": element, "layers_to_patch": layers, "activation_type": kind}


# Of each activation, the module of a layer that gives it; `.input`: that takes it.
MODULES = {
    "resid_in_{}": "model.layers.{}.input",
    "resid_out_{}": "model.layers.{}",
    "attn_in_{}": "model.layers.{}.self_attn.q_proj.input",
    "attn_out_{}": "model.layers.{}.self_attn.o_proj",
    "values_{}": "model.layers.{}.self_attn.v_proj",
    "mlp_out_{}": "model.layers.{}.mlp",
}


def of_pair(
    module: Any, base: list[int], target: list[int], kind: str, layers: list[int], tokens: list[tuple[int, int]]
) -> Tensor:
    """Logits behind the target with what the base has; `tokens` are pairs of a base's and a target's token."""
    held: dict[int, Tensor] = {}

    def kept(layer: int) -> Any:
        def keep(value: Tensor) -> Tensor:
            held[layer] = value.clone()
            return value

        return keep

    def patched(layer: int) -> Any:
        def patch(value: Tensor) -> Tensor:
            new = value.clone()
            for source, place in tokens:
                new[:, place] = held[layer][:, source]
            return new

        return patch

    with changed(module, outputs={MODULES[kind].format(layer): kept(layer) for layer in layers}):
        logits_of(module, base)
    with changed(module, outputs={MODULES[kind].format(layer): patched(layer) for layer in layers}):
        return logits_of(module, target)


CASES: list[tuple[dict[str, Any], list[int], Any]] = [
    (query("@last", [1], "resid_in_{}"), [1], lambda length: [length - 1]),
    (query("@last-2", [2, 0], "resid_out_{}"), [0, 2], lambda length: [length - 2]),
    (query("@all", "all", "attn_out_{}"), [0, 1, 2, 3], range),
    (query("@last-2", [1, 3], "values_{}"), [1, 3], lambda length: [length - 2]),
    (query("@all", [2], "mlp_out_{}"), [2], range),
]


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("asked", "layers", "tokens"), CASES, ids=[case[0]["activation_type"] for case in CASES])
def test_pairs_are_patched_as_by_hand(
    llama: HookedModel, by_transformers: Any, asked: dict[str, Any], layers: list[int], tokens: Any, size: int
) -> None:
    before = copy.deepcopy(asked)
    found = llama.compute_patching(
        ["last"], loader(BASE, size), loader(TARGET, size), [asked], [[5], [6, 7], [8]], [[15], [16], [17, 18]],
        batch_saver=lambda others: {"label": others["label"]},
    )  # fmt: skip
    assert asked == before
    for row, (base, target) in enumerate(zip(BASE, TARGET, strict=True)):
        pairs = [(token, token) for token in tokens(len(base))]
        patched = of_pair(by_transformers, base, target, asked["activation_type"], layers, pairs)
        of_base, clean = logits_of(by_transformers, base), logits_of(by_transformers, target)
        assert not torch.allclose(patched, clean, atol=1e-3)
        close = dict(rtol=1e-3, atol=1e-4)
        for name, expected in (("base", of_base), ("target_clean", clean), ("target_patched", patched)):
            torch.testing.assert_close(found[f"{name}_logits"][row], expected, **close)
        first, second = [[5], [6, 7], [8]][row], [[15], [16], [17, 18]][row]
        differences = [logits[second].mean() - logits[first].mean() for logits in (clean, patched)]
        torch.testing.assert_close(found["logit_diff_in_clean"][row], differences[0], **close)
        torch.testing.assert_close(found["logit_diff_in_patched"][row], differences[1], **close)
        torch.testing.assert_close(found["logit_diff_variation"][row], differences[1] - differences[0], **close)
        logs = {"base": of_base.log_softmax(-1), "clean": clean.log_softmax(-1), "patched": patched.log_softmax(-1)}
        for one, other in (("clean", "base"), ("patched", "base"), ("patched", "clean")):
            expected = (logs[other].exp() * (logs[other] - logs[one])).sum()
            torch.testing.assert_close(found[f"kl_{one}|{other}"][row], expected, **close)
    torch.testing.assert_close(found["kl_difference"], found["kl_patched|base"] - found["kl_clean|base"])
    assert found["label"].tolist() == [0, 1, 2] and found["resid_mid_2"].shape[::2] == found["resid_out_2"].shape[::2]
    assert all(found[name].shape == (3,) for name in found if name.startswith(("logit_diff", "kl_")))


def test_a_patch_of_everything_gives_the_base_s_logits(llama: HookedModel) -> None:
    for kind in ("resid_in_{}", "resid_mid_{}"):
        also = [] if kind == "resid_in_{}" else [query("@all", [0], "resid_in_{}")]
        found = llama.compute_patching(["all"], loader(BASE), loader(TARGET), [query("@all", [0], kind), *also])
        torch.testing.assert_close(found["target_patched_logits"], found["base_logits"], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found["target_clean_logits"], found["base_logits"], atol=1e-2)


def test_a_patch_with_a_run_s_own_activations_changes_nothing(llama: HookedModel) -> None:
    kinds = [*MODULES, "resid_mid_{}", "keys_L{}", "queries_L{}", "head_out_L{}H1"]
    everything = [query("@all", [layer], kind) for kind in kinds for layer in (0, 2)]
    found = llama.compute_patching(["last"], loader(BASE, 3), loader(BASE, 3), everything)
    torch.testing.assert_close(found["target_patched_logits"], found["target_clean_logits"], rtol=1e-4, atol=1e-4)
    for kind in ("keys_L{}", "queries_L{}", "head_keys_L{}H3", "head_queries_L{}H2"):
        alone = llama.compute_patching(["last"], loader(BASE, 3), loader(BASE, 3), query("@all", [2], kind))
        torch.testing.assert_close(alone["target_patched_logits"], alone["target_clean_logits"], rtol=1e-4, atol=1e-4)
        other = llama.compute_patching(["last"], loader(BASE, 3), loader(TARGET, 3), query("@all", [2], kind))
        assert not torch.allclose(other["target_patched_logits"], other["target_clean_logits"], atol=1e-4)


def test_every_query_name_and_form_is_honoured(llama: HookedModel, by_transformers: Any) -> None:
    rows = [
        query("@last", [1], "resid_in_{}"),
        query("@last-3", [1], "resid_in_{}"),
        query("@last-2", [2], "mlp_out_{}"),
    ]
    base, target = loader(BASE), loader(TARGET)
    expected = llama.compute_patching(["last"], base, target, rows)["target_patched_logits"]
    alone = llama.compute_patching(["last"], base, target, rows[:1])["target_patched_logits"]
    assert not torch.allclose(expected, alone, atol=1e-4)
    both = of_pair(by_transformers, BASE[0], TARGET[0], "resid_in_{}", [1], [(6, 6), (4, 4)])
    two = llama.compute_patching(["last"], base, target, rows[:2])["target_patched_logits"]
    torch.testing.assert_close(two[0], both, rtol=1e-4, atol=1e-4)
    frame = pd.DataFrame(rows)
    for form in (frame, frame.to_dict(), frame.to_dict("list"), tuple(rows)):
        assert torch.equal(llama.compute_patching("last", base, target, form)["target_patched_logits"], expected)
    assert list(frame.columns) == list(rows[0])


def test_names_stand_elsewhere_in_the_other_prompt(llama: HookedModel, by_transformers: Any) -> None:
    base, target = BASE[0], TARGET[1]
    found = llama.compute_patching(
        ["first", " last"], loader([base]), loader([target]), query("@last", [1], "resid_out_{}"), extract_attn_out=True
    )
    expected = of_pair(by_transformers, base, target, "resid_out_{}", [1], [(6, 3)])
    torch.testing.assert_close(found["target_patched_logits"][0], expected, rtol=1e-4, atol=1e-4)
    assert found["mapping_index"] == {"first": [0], "last": [1]} and found["attn_out_0"].shape == (1, 2, 32)
    assert "resid_out_0" not in found and "logit_diff_variation" not in found
    text = llama.hf_tokenizer.convert_ids_to_tokens(41)
    token = llama.compute_patching(["last"], loader([BASE[2]]), loader([TARGET[2]]), query(text, [0], "resid_out_{}"))
    expected = of_pair(by_transformers, BASE[2], TARGET[2], "resid_out_{}", [0], [(2, 2)])
    torch.testing.assert_close(token["target_patched_logits"][0], expected, rtol=1e-4, atol=1e-4)
    parts = llama.compute_patching(
        ["position-group-1"],
        [{**batch_of([base]), "split_positions": [2, 4]}],
        [{**batch_of([target]), "split_positions": [1, 3]}],
        query("@position-group-1", [1], "resid_in_{}"),
    )
    expected = of_pair(by_transformers, base, target, "resid_in_{}", [1], [(2, 1), (3, 2)])
    torch.testing.assert_close(parts["target_patched_logits"][0], expected, rtol=1e-4, atol=1e-4)


def test_queries_of_forward_hold_their_activations(llama: HookedModel, by_transformers: Any) -> None:
    held = llama.forward(batch_of(BASE), ["first", "last"], extract_resid_in=True)
    asked = {**query("@last", [1, 2], "resid_in_{}"), "patching_activations": held}
    for more in ({}, {"base_activation_index": [1]}, {"base_activation_index": -1}):
        found = llama.forward(batch_of(TARGET, "right"), patching_queries=[{**asked, **more}])
        for row, (base, target) in enumerate(zip(BASE, TARGET, strict=True)):
            expected = of_pair(by_transformers, base, target, "resid_in_{}", [1, 2], [(len(base) - 1, len(target) - 1)])
            torch.testing.assert_close(found["logits"][row], expected, rtol=1e-4, atol=1e-4)
    frame = pd.DataFrame([asked])
    assert torch.equal(
        llama.forward(batch_of(TARGET), patching_queries=frame)["logits"],
        llama.forward(batch_of(TARGET), patching_queries=asked)["logits"],
    )
    alone = {**asked, "patching_activations": llama.forward(batch_of(BASE[:1]), ["last"], extract_resid_in=True)}
    one = llama.forward(batch_of(TARGET), patching_queries=alone)["logits"]  # of one prompt, for all
    expected = of_pair(by_transformers, BASE[0], TARGET[1], "resid_in_{}", [1, 2], [(6, 3)])
    torch.testing.assert_close(one[1], expected, rtol=1e-4, atol=1e-4)


def test_a_generation_goes_on_from_patched_prompts(llama: HookedModel) -> None:
    held = llama.forward(batch_of(BASE), ["all"], extract_resid_in=True)
    patch = {**query("@all", [0], "resid_in_{}"), "patching_activations": held}
    for use_cache in (True, False):
        given: dict[str, Any] = dict(max_new_tokens=1, use_cache=use_cache, eos_token_id=None)
        patched = llama.generate(batch_of(TARGET), patching_queries=patch, **given)["sequences"]
        assert torch.equal(patched[:, -1], llama.generate(batch_of(BASE), **given)["sequences"][:, -1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(patching_query=[query("@lats", [0], "resid_in_{}")]), "token position 'lats'"),
        (dict(patching_query=[query("@last", [4], "resid_in_{}")]), "layer 4; the model has layers 0 to 3"),
        (dict(patching_query=[query("@last", [], "resid_in_{}")]), r"expected layers, e.g. \[0, 1\], or 'all'"),
        (
            dict(patching_query=[query("@last", [0], "resid_inn_{}")]),
            "'resid_inn_0' is not the key.*Did you mean 'resid_in_0'",
        ),
        (dict(patching_query=[query("@last", [0], "resid_in")]), r"expected e.g. 'resid_in_\{\}'"),
        (dict(patching_query=[query("@last", [0], "pattern_L{}H0")]), "no activation at tokens"),
        (dict(patching_query=[query("last", [0], "resid_in_{}")]), "write '@last'"),
        (dict(patching_query=[]), "expected at least one query"),
        (dict(patching_query=[{**query("@last", [0], "resid_in_{}"), "layer": 1}]), "a query has no 'layer'. Known: "),
        (dict(return_logit_diff=True), "takes the tokens of both"),
        (dict(base_dictonary_idxs=[[1]] * 3), "takes the tokens of both"),
        (dict(base_dictonary_idxs=[[1]] * 2, target_dictonary_idxs=[[1]] * 2), "2 entries for 3 pairs"),
        (dict(base_dictonary_idxs=[[1]] * 4, target_dictonary_idxs=[[1]] * 4), "4 entries for 3 pairs"),
        (dict(base_dictonary_idxs=[[1]] * 3, target_dictonary_idxs=[[1]] * 2), "3 entries, target_dictonary_idxs 2"),
        (dict(base_dictonary_idxs=[[1]] * 3, target_dictonary_idxs=[[400]] * 3), "the vocabulary has 400 tokens"),
        (dict(target_dataloader=loader(TARGET[:2])), "target_dataloader: it has 2 batches"),
        (dict(base_dataloader=loader(BASE[:2])), "base_dataloader: it has fewer"),
        (dict(base_dataloader=loader(BASE, 3)), "3 base prompts in a batch, and 1 target prompts"),
        (dict(base_dataloader=[], target_dataloader=[]), "hold no pair"),
        (dict(extract_resid_outt=True), "no argument 'extract_resid_outt'"),
        (dict(target_token_positions="nope"), "token position 'nope'"),
        (
            dict(base_dataloader=loader([BASE[0]] * 3), patching_query=[query("@all", [0], "resid_in_{}")]),
            "example 0 is written at 4 tokens, and the other run has 7",
        ),
        (
            dict(
                base_dataloader=loader([BASE[1], *BASE[1:]]),
                patching_query=[query("@last", [0], "resid_in_{}"), query("@6", [0], "resid_in_{}")],
            ),
            "'6' is out of range",
        ),
    ],
)
def test_refuses(llama: HookedModel, given: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = dict(
        target_token_positions=["last"], base_dataloader=loader(BASE), target_dataloader=loader(TARGET),
        patching_query=[query("@last", [0], "resid_in_{}")],
    )  # fmt: skip
    with pytest.raises(InterpError, match=message):
        llama.compute_patching(**{**asked, **given})


def test_forward_refuses_queries_without_fitting_activations(llama: HookedModel) -> None:
    held = llama.forward(batch_of(BASE), ["last"], extract_resid_out=True)
    for more, message in (
        ({}, "expected the cache of another run, got None. compute_patching"),
        ({"patching_activations": held}, "has no 'resid_in_0'. Extract it"),
        ({"patching_activations": held, "patching_elem": "@first"}, "the other run has no position 'first', but last"),
        (
            {"patching_activations": held, "base_activation_index": [3], "activation_type": "resid_out_{}"},
            "out of range",
        ),
    ):
        with pytest.raises(InterpError, match=message):
            llama.forward(batch_of(TARGET), patching_queries=[{**query("@last", [0], "resid_in_{}"), **more}])

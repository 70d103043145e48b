"""Interventions of easyroutine 1.1.5: each type and activation by hand, in batches and generation; refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interp.compat.easyroutine import HookedModel, Intervention
from interp.errors import InterpError
from interp.interventions import Intervention as OwnIntervention
from tests.interp.compat.easyroutine.edited_by_hand import (
    IDS,
    PatternChange,
    batch_of,
    changed,
    logits_of,
    written,
)

GENERATOR = torch.Generator().manual_seed(0)
MAPS: list[tuple[str, Any, Any, Any]] = [  # type, positions, queries and keys of a prompt of so many tokens
    ("columns", ["last-2", "first"], lambda _, now: range(now), lambda length: [length - 2, 0]),
    ("rows", ["last"], lambda length, _: [length - 1], lambda length: slice(None)),
    ("grid", (["last", "last-2"], ["first", 1]), lambda length, _: [length - 1, length - 2], lambda length: [0, 1]),
]


def of_map(head: int, layer: int, rows: Any, columns: Any, factor: float) -> PatternChange:
    def change(own_layer: int, pattern: Tensor) -> None:
        if own_layer == layer:
            for row in rows:
                pattern[0, head, row, columns] *= factor

    return change


@pytest.mark.parametrize("factor", [0.0, 0.5])
@pytest.mark.parametrize(("kind", "names", "rows", "columns"), MAPS, ids=[case[0] for case in MAPS])
def test_parts_of_a_pattern_are_multiplied(
    llama: HookedModel, by_transformers: Any, kind: str, names: Any, rows: Any, columns: Any, factor: float
) -> None:
    ask = [Intervention(kind, "pattern_L1H2", names, multiplication_value=factor)]  # type: ignore[arg-type]
    found = llama.forward(batch_of(IDS), interventions=ask)["logits"]
    written_on = [
        llama.generate(
            batch_of(IDS), interventions=ask, max_new_tokens=3, use_cache=use_cache, eos_token_id=None,
            return_dict_in_generate=True, output_logits=True,
        )["logits"]
        for use_cache in (True, False)
    ]  # fmt: skip
    for row, ids in enumerate(IDS):
        length = len(ids)
        steps = written(by_transformers, ids, 3, lambda now, n=length: of_map(2, 1, rows(n, now), columns(n), factor))
        torch.testing.assert_close(found[row], steps[0], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(steps[0], logits_of(by_transformers, ids), atol=1e-3)
        for step, expected in enumerate(steps):
            for logits in written_on:
                torch.testing.assert_close(logits[step][row], expected, rtol=1e-4, atol=1e-4)


def test_scores_that_are_taken_out_leave_the_rest_renormalised(llama: HookedModel, by_transformers: Any) -> None:
    ask = Intervention("grid_pre_softmax", "pattern_L1H2", (["last"], ["first", "last-2"]))
    cache = llama.forward(batch_of(IDS), ["all"], interventions=[ask], extract_attn_pattern=True)
    for row, ids in enumerate(IDS):
        last = len(ids) - 1

        def change(layer: int, pattern: Tensor, last: int = last) -> None:
            if layer == 1:
                own = pattern[0, 2, last]
                own[[0, last - 1]] = 0
                own /= own.sum()

        with changed(by_transformers, change):
            torch.testing.assert_close(cache["logits"][row], logits_of(by_transformers, ids), rtol=1e-4, atol=1e-4)
        assert cache["pattern_L1H2"][row, last, [0, last - 1]].tolist() == [0, 0]
        torch.testing.assert_close(cache["pattern_L1H2"][row, last, : last + 1].sum(), torch.tensor(1.0))
    columns = Intervention("columns_pre_softmax", "pattern_L1H2", ["last-2"])
    assert not torch.allclose(llama.forward(batch_of(IDS), interventions=[columns])["logits"], cache["logits"])


def test_keep_self_attn_is_that_of_ablations(llama: HookedModel) -> None:
    ask = Intervention("keep-self-attn", "pattern_L2H0", ["all"])
    query = {"type": "keep-self-attn", "head-layer-couple": [[0, 2]]}
    expected = llama.forward(batch_of(IDS), ablation_queries=query)["logits"]
    assert torch.equal(llama.forward(batch_of(IDS), interventions=ask)["logits"], expected)


def test_what_is_read_can_be_written(llama: HookedModel) -> None:
    """Each key's own values change nothing; another's give its logits where they are all that is left."""
    flags = (
        "resid_in", "resid_mid", "resid_out", "attn_in", "attn_out", "mlp_out", "values", "keys", "queries", "embed",
        "head_values", "head_keys", "head_queries", "head_out", "attn_pattern", "resid_in_post_layernorm",
    )  # fmt: skip
    given = batch_of(IDS, "right")
    held = llama.forward(given, ["all"], **{f"extract_{flag}": True for flag in flags})
    keys = [
        "resid_in_1", "resid_mid_L1", "resid_out_1", "resid_out_L2", "attn_in_1", "attn_out_1", "mlp_out_1",
        "values_L1", "keys_L1", "queries_L1", "input_embeddings", "head_values_L1H3", "head_keys_L1H2",
        "head_queries_L1H3",
        "head_out_L1H3", "resid_in_post_layernorm_1",
    ]  # fmt: skip
    for key in keys:
        value = held[key.replace("_L1", "_1").replace("_L2", "_2") if key.startswith("resid") else key]
        own = Intervention("full", key, ["all"], value)
        found = llama.forward(given, interventions=[own])["logits"]
        torch.testing.assert_close(found, held["logits"], rtol=1e-4, atol=1e-4)
        other = llama.forward(given, interventions=[Intervention("full", key, ["all"], 2 * value)])["logits"]
        assert not torch.allclose(other, held["logits"], atol=1e-3), key
    pattern = held["pattern_L1H2"].nan_to_num()
    own = Intervention("columns", "pattern_L1H2", ["all"], pattern)
    torch.testing.assert_close(
        llama.forward(given, interventions=[own])["logits"], held["logits"], rtol=1e-4, atol=1e-4
    )


def test_keys_and_queries_are_written_before_rotation(llama: HookedModel, by_transformers: Any) -> None:
    value = torch.randn(1, 2, 16, generator=GENERATOR)
    ask = Intervention("full", "keys_L1", ["first", "last-2"], value)
    one = Intervention("full", "head_queries_L2H3", ["last"], value[:, :1, :8])
    found = llama.forward(batch_of(IDS), interventions=[ask, one])["logits"]
    for row, ids in enumerate(IDS):
        there = len(ids) - 2

        def keys(output: Tensor, place: int = there) -> Tensor:
            new = output.clone()
            new[:, [0, place]] = value
            return new

        def queries(output: Tensor) -> Tensor:
            new = output.clone()
            new[:, -1, 24:32] = value[:, 0, :8]
            return new

        outputs = {"model.layers.1.self_attn.k_proj": keys, "model.layers.2.self_attn.q_proj": queries}
        with changed(by_transformers, outputs=outputs):
            torch.testing.assert_close(found[row], logits_of(by_transformers, ids), rtol=1e-4, atol=1e-4)


def test_one_head_is_changed_alone(llama: HookedModel, by_transformers: Any) -> None:
    halves = Intervention("full", "head_out_L1H3", ["last"], multiplication_value=0.5)
    group = Intervention("full", "head_values_L2H3", ["last-2"])
    alone = Intervention("full", "projected_value_L3H1", ["last-2"])
    found = llama.forward(batch_of(IDS), interventions=[halves, group, alone])["logits"]
    for row, ids in enumerate(IDS):
        place = len(ids) - 2

        def heads(given: Tensor) -> Tensor:
            new = given.clone()
            new[:, -1, 24:32] *= 0.5
            return new

        def values(output: Tensor, place: int = place) -> Tensor:
            new = output.clone()
            new[:, place, 8:16] = 0
            return new

        def pattern(layer: int, pattern: Tensor, place: int = place) -> None:
            if layer == 3:
                pattern[0, 1, :, place] = 0

        outputs = {"model.layers.1.self_attn.o_proj.input": heads, "model.layers.2.self_attn.v_proj": values}
        with changed(by_transformers, pattern, outputs):
            torch.testing.assert_close(found[row], logits_of(by_transformers, ids), rtol=1e-4, atol=1e-4)


def test_registered_ones_act_in_every_run_until_they_are_cleaned(llama: HookedModel) -> None:
    plain, given = llama.forward(batch_of(IDS))["logits"], batch_of(IDS)
    half = Intervention("full", "mlp_out_1", ["all"], multiplication_value=0.5)
    llama.register_interventions([half, OwnIntervention("resid_post.2", "last", "scale", 2.0)])
    changed_twice = llama.forward(given)["logits"]
    assert torch.equal(llama.extract_cache([given], ["last"])["logits"], changed_twice)
    written_on = llama.generate(
        given, max_new_tokens=1, return_dict_in_generate=True, output_logits=True, eos_token_id=None
    )
    torch.testing.assert_close(written_on["logits"][0], changed_twice, rtol=1e-4, atol=1e-4)
    llama.register_interventions([half])
    once = llama.forward(given)["logits"]
    llama.clean_interventions()
    assert torch.equal(llama.forward(given)["logits"], plain)
    assert torch.equal(llama.forward(given, interventions=half)["logits"], once) and half["type"] == "full"
    assert not torch.allclose(once, plain, atol=1e-3) and not torch.allclose(changed_twice, once, atol=1e-3)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (dict(type="colums"), "type 'colums' is unknown. Did you mean 'columns'"),
    (dict(type="full"), "pattern_L0H0 takes columns, rows, grid"),
    (dict(activation="resid_out_0"), "resid_out_0 takes full"),
    (dict(type="full", activation="values_L12"), "the model has layers 0 to 3"),
    (dict(type="full", activation="head_values_L0H4"), "the layer has heads 0 to 3"),
    (dict(type="full", activation="head_values_0"), "expected e.g. 'head_values_L0H0'"),
    (dict(type="full", activation="resid_out_L0H1"), "expected e.g. 'resid_out_0'"),
    (dict(type="full", activation="resid_oot_0"), "'resid_oot_0' is not the key.*Did you mean 'resid_out_0'"),
    (dict(type="full", activation="projected_value_L0H0", patching_values=torch.ones(32)), "no value of the model"),
    (dict(token_positions=["nope"]), "token position 'nope'"),
    (dict(token_positions=[]), "expected names, e.g."),
    (dict(type="grid"), "expected a pair of lists, queries and keys"),
    (dict(type="block-img-txt"), "has no image"),
    (dict(apply_softmax=True), "softmax of a softmax"),
    (dict(patching_values="mean"), "expected a tensor, 'ablation' or None"),
    (dict(patching_values=torch.ones(2, 2)), r"expected a whole pattern \(7, 7\)"),
    (dict(type="full", activation="resid_out_0", patching_values=torch.ones(1, 3, 32)), "position 1, number"),
    (dict(type="full", activation="resid_out_0", patching_values=torch.ones(31)), "expected what broadcasts to"),
    (dict(type="full", activation="values_L0", patching_values=torch.ones(31)), "expected numbers of 2 heads, got 31"),
    (dict(type="rows_pre_softmax", token_positions=["last"]), "cuts everything that token"),
    (dict(type="keep-self-attn", multiplication_value=0.5), "takes neither"),
    (dict(multiplication_value="half"), "expected a number"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refuses(llama: HookedModel, given: dict[str, Any], message: str) -> None:
    one = Intervention(**{"type": "columns", "activation": "pattern_L0H0", "token_positions": ["last"], **given})
    with pytest.raises(InterpError, match=message):
        llama.forward(batch_of(IDS), interventions=[one])
    with pytest.raises(InterpError, match="expected an Intervention"):
        llama.forward(batch_of(IDS), interventions=[given])

"""`Extraction` against plain transformers with eager attention: values, statistics, averages, identities, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interp import StandardizedTransformer
from interp.activations import Extraction, ExtractionResult
from interp.errors import InterpError
from interp.interventions import Intervention
from interp.prompts import Prompt
from tests.families import build as build_family
from tests.interp.activations.plain_extraction import by_hand, visible
from tests.interp.reference import build, plain, wrapped
from tests.made import LiveBytes
from tests.tiny import tiny_tokenizer

RAGGED = [[1, 17, 250, 33, 94, 301, 7, 12, 44], [1, 88, 5], [1, 260, 71, 12, 9]]
CASES = ["llama", "qwen2", "gemma2", "gpt2"]  # grouped queries, biases, a norm behind attention and windows, GPT-2
WINDOWS = {"gemma2": {0: 6, 2: 6}}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_what_is_taken_is_what_plain_transformers_computes(case: str) -> None:
    extraction = Extraction(
        "resid_post.* pattern.2.h1 value_weighted_pattern.0 projected_value.2 projected_value.1.h3 v.1 last_norm "
        "logits input_ids pattern_mean.* pattern_sum.2.h3 pattern_ratio.* value_weighted_ratio.2 "
        "value_weighted_mean.0.h2",
        "last 0:2 1:3",
        queries="last :3",
        keys="first 0:2 all",
    )
    model = wrapped(case)
    result = extraction.run(model, RAGGED, progress=False)
    close(numbers(result), one_by_one(result, model))
    close(numbers(result), numbers(extraction.run(model, [RAGGED], progress=False, padding_side="right")))
    assert result.positions == [[8, 0, 1, 1, 2], [2, 0, 1, 1, 2], [4, 0, 1, 1, 2]]
    assert result.tokens("last") == [[8], [2], [4]] and result.input_ids == RAGGED
    for row, ids in enumerate(RAGGED):
        twin = by_hand(case, ids)
        at = result.positions[row]
        queries = {"last": [len(ids) - 1], ":3": [0, 1, 2]}
        keys = {"first": [0], "0:2": [0, 1], "all": list(range(len(ids)))}
        places = [token for tokens in queries.values() for token in tokens]
        columns = [token for tokens in keys.values() for token in tokens]
        for layer in range(model.num_layers - 1):  # the last hidden state of some families is taken behind the norm
            close(result[f"resid_post.{layer}"][row], twin[f"resid_post.{layer}"][at])
        close(result["logits"][row], twin["logits"][at])
        assert result["input_ids"][row].tolist() == [ids[token] for token in at]
        hidden = twin["last_norm"][at].double()
        close(result["last_norm_mean"][row].double(), hidden.mean(-1))
        close(result["last_norm_variance"][row].double(), hidden.var(-1, unbiased=False))
        close(result["last_norm_second_moment"][row].double(), hidden.square().mean(-1))
        close(result["projected_value.2"][row], twin["projected.2"].transpose(0, 1)[at])
        close(result["projected_value.1.h3"][row], twin["projected.1"][3][at])
        head = model.num_heads // model.num_kv_heads  # the first head of the second group
        close(result["v.1"][row][1], twin["v.1"][head][at])
        shown = len(columns)  # the axis is as wide as the longest prompt needs
        close(result["pattern.2.h1"][row, :, :shown], twin["pattern.2"][1][places][:, columns])
        assert result["pattern.2.h1"][row, :, shown:].isnan().all()
        weighted = [twin[f"pattern.{i}"] * twin[f"projected.{i}"].norm(dim=-1)[:, None] for i in range(3)]
        close(result["value_weighted_pattern.0"][row, ..., :shown], weighted[0][:, places][..., columns])
        for i, of in enumerate(queries.values()):
            for j, to in enumerate(keys.values()):
                for layer in range(model.num_layers):
                    pattern = twin[f"pattern.{layer}"][:, of][..., to]
                    seen = visible(len(ids), WINDOWS.get(case, {}).get(layer))
                    uniform = (seen / seen.sum(-1, keepdim=True))[of][:, to]
                    close(result[f"pattern_mean.{layer}"][row, :, i, j], pattern.mean((1, 2)))
                    close(result[f"pattern_ratio.{layer}"][row, :, i, j], pattern.mean((1, 2)) / uniform.mean())
                    if layer == 2:
                        close(result["pattern_sum.2.h3"][row, i, j], pattern[3].sum())
                        norms = twin["projected.2"].norm(dim=-1)[:, to]
                        expected = weighted[2][:, of][..., to].sum((1, 2)) / (uniform * norms[:, None]).sum((1, 2))
                        close(result["value_weighted_ratio.2"][row, :, i, j], expected)
                close(result["value_weighted_mean.0.h2"][row, i, j], weighted[0][2][of][:, to].mean())


def numbers(result: ExtractionResult) -> Tensor:
    """All numbers of a result as one vector."""
    return torch.cat([result[name].flatten().float() for name in result]).nan_to_num(-7.0)


def one_by_one(result: ExtractionResult, model: StandardizedTransformer) -> Tensor:
    """The same of batches of one prompt, laid out as the batch is."""
    parts = [result.extraction.run(model, [ids], progress=False) for ids in RAGGED]
    vectors = []
    for name in result:
        whole = torch.full_like(result[name], -1 if name == "input_ids" else torch.nan)
        for row, part in enumerate(parts):
            whole[row][tuple(slice(count) for count in part[name].shape[1:])] = part[name][0]
        vectors.append(whole.flatten().float())
    return torch.cat(vectors).nan_to_num(-7.0)


@pytest.mark.parametrize("case", CASES)
def test_the_identities_hold(case: str) -> None:
    model = wrapped(case)
    sites = "embed resid_pre.* attn_out.* mlp_out.* resid_mid.* resid_post.* head_out.* pattern.* projected_value.* v.*"
    result = Extraction(sites, "all", keys="all").run(model, RAGGED, progress=False)
    for row, ids in enumerate(RAGGED):
        own = slice(len(ids))
        twin = by_hand(case, ids)
        for layer in range(model.num_layers):
            value = {
                kind: result[f"{kind}.{layer}"][row, own]
                for kind in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "head_out")
            }
            close(value["resid_pre"] + value["attn_out"], value["resid_mid"])
            close(value["resid_mid"] + value["mlp_out"], value["resid_post"])
            bias = twin[f"attn_out.{layer}"] - value["head_out"].sum(1) if case == "gpt2" else torch.zeros(1)
            close(bias, bias[:1].expand_as(bias))  # one vector, whatever the token
            close(value["head_out"].sum(1) + bias[:1], value["attn_out"])
            pattern = result[f"pattern.{layer}"][row, :, own, own]
            close(pattern.sum(-1), torch.ones(model.num_heads, len(ids)))
            projected = result[f"projected_value.{layer}"][row, own]
            if case != "gemma2":  # a norm stands between the heads and the stream
                close(torch.einsum("hqk,khm->qhm", pattern, projected), value["head_out"])
            group = model.num_heads // model.num_kv_heads  # head h uses the key-value head h // group
            for head in range(model.num_heads):
                close(result[f"v.{layer}"][row, head // group, own], twin[f"v.{layer}"][head])
    close(result["resid_pre.0"][0], result["embed"][0])


def test_means_are_of_those_that_have_a_slot() -> None:
    model = wrapped("llama")
    taken = "resid_post.1 pattern.2 value_weighted_pattern.2.h1 z.1.h2 last_norm_mean"
    extraction = Extraction(means=taken, positions="all last", keys="all")
    whole = Extraction(taken, "all last", keys="all").run(model, RAGGED, progress=False)
    for batches in ([[ids] for ids in RAGGED], [RAGGED], [RAGGED[1:], RAGGED[:1]]):
        result = extraction.run(model, batches, progress=False)
        assert not len(result) and list(result.means) == list(whole)
        for name, mean in result.means.items():
            close(mean, whole[name].nanmean(0))
            there = (~whole[name].isnan()).sum(0)
            assert torch.equal(result.counts[name].expand_as(mean).long(), there)
        assert result.axes("pattern.2") == ("example", "head", "query", "key")


def test_means_over_positions_are_within_each_name() -> None:
    model = wrapped("gemma2")
    names = ["all", "last", "1:3"]
    taken = "resid_post.2 z.1 pattern.0 head_out.1.h2 last_norm_variance"
    extraction = Extraction(taken, names, keys="first all", means="resid_post.2", mean_over_positions=True)
    result = extraction.run(model, RAGGED, progress=False)
    whole = Extraction(taken, names, keys="first all").run(model, RAGGED, progress=False)
    assert result.axes("z.1") == ("example", "position_name", "head", "head_dim")
    assert result.labels("position_name") == names and result["resid_post.2"].shape[:2] == (3, 3)
    for name in ("resid_post.2", "z.1", "head_out.1.h2", "last_norm_variance"):
        for index, position in enumerate(names):
            close(result[name][:, index], whole.at(name, position).nanmean(1))
            close(result.at(name, position), result[name][:, index])
    for i, query in enumerate(names):
        for j, key in enumerate(("first", "all")):
            rows, columns = whole.slots.query.slots(query), whole.slots.key.slots(key)
            close(result["pattern.0"][:, :, i, j], whole["pattern.0"][:, :, rows][..., columns].nanmean((2, 3)))
    close(result.means["resid_post.2"], result["resid_post.2"].mean(0))


def test_heads_are_chosen_for_what_names_none() -> None:
    model = wrapped("llama")  # four heads, two of keys and values
    extraction = Extraction("pattern.* z.2.h0 k.* value_weighted_sum.* resid_post.1", heads="2.h0,3 1.h1", keys="all")
    result = extraction.run(model, RAGGED[:1], progress=False)
    assert set(result) == {
        "pattern.1.h1", "pattern.2.h0", "pattern.2.h3", "z.2.h0", "k.1.h0", "k.2.h0", "k.2.h1", "resid_post.1",
        "value_weighted_sum.1.h1", "value_weighted_sum.2.h0", "value_weighted_sum.2.h3",
    }  # fmt: skip
    whole = Extraction("pattern.2 k.2", keys="all").run(model, RAGGED[:1], progress=False)
    close(result["pattern.2.h3"], whole["pattern.2.h3"])
    close(result["k.2.h1"], whole["k.2"][:, 1])
    assert result["blocks.1.hook_resid_post"] is result["resid_post", 1] and "pattern.1.h1" in result
    with pytest.raises(InterpError, match=r"`heads` names none of layer 3"):
        Extraction("pattern.3", heads="2.h0").run(model, RAGGED, progress=False)
    with pytest.raises(InterpError, match="expected layers and heads"):
        Extraction("pattern.3", heads="3").run(model, RAGGED, progress=False)


def test_interventions_and_hooks_act_first_and_hooks_are_gone_after_an_exception() -> None:
    model = wrapped("llama")
    extraction = Extraction("resid_post.1 pattern.3 logits", "last", keys="all")
    plain = extraction.run(model, RAGGED, progress=False)
    edit = Intervention("z.1.h2", "all", "zero")
    edited = extraction.run(model, RAGGED, progress=False, interventions=edit)
    _, cache = model.run_with_cache(RAGGED, sites="resid_post.1 logits", positions="last", interventions=edit)
    for name in cache:
        close(edited[name], cache[name])
        assert not torch.allclose(edited[name], plain[name])
    same = Intervention("resid_post.1", "last", "set", plain["resid_post.1"][0, 0])
    close(extraction.run(model, RAGGED[:1], progress=False, interventions=[same])["logits"], plain["logits"][:1])

    def breaks(value: Tensor, site: Any) -> None:
        raise ValueError("here")

    with pytest.raises(ValueError, match="here"), model.hooks([("mlp_out.1", breaks)]):
        extraction.run(model, RAGGED, progress=False)
    assert not model.list_hooks()
    close(extraction.run(model, RAGGED, progress=False)["logits"], plain["logits"])


def test_a_pass_ends_with_what_is_taken_last() -> None:
    model = wrapped("llama")
    ran: list[int] = []
    hooks = [
        model._module.get_submodule(f"model.layers.{i}").register_forward_hook(lambda *_, i=i: ran.append(i))
        for i in range(model.num_layers)
    ]
    try:
        Extraction("pattern.1").run(model, [RAGGED[0]], progress=False)
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == [0]  # layer 1 was left in its attention


def test_statistics_of_a_coarse_model_are_float32() -> None:
    fine = wrapped("gemma2")
    coarse = StandardizedTransformer(build("gemma2").to(torch.float16), tokenizer=tiny_tokenizer(), verify=False)
    extraction = Extraction(
        "resid_post.1 pattern_ratio.0 value_weighted_ratio.1 value_weighted_pattern.2.h1 last_norm_variance",
        "last", queries=":3 last", keys="first all", means="resid_post.1",
    )  # fmt: skip
    expected = extraction.run(fine, RAGGED, progress=False)
    result = extraction.run(coarse, RAGGED, progress=False, dtype=torch.bfloat16)
    assert result["resid_post.1"].dtype == torch.bfloat16
    assert expected["pattern_ratio.0"].isnan().any()  # a key outside a window, also by the mask of float16
    for name in result:
        if name != "resid_post.1":
            assert result[name].dtype == torch.float32
            torch.testing.assert_close(result[name], expected[name], rtol=0.03, atol=0.01, equal_nan=True)
    assert result.means["resid_post.1"].dtype == torch.float32
    close_means = dict(rtol=0.05, atol=0.05)
    torch.testing.assert_close(result.means["resid_post.1"], expected.means["resid_post.1"], **close_means)


def test_memory_is_that_of_one_layer_and_of_what_is_kept() -> None:
    model = wrapped("llama")
    prompts = [[[1, 5] * 40] * 16]
    peaks = {}
    for sites in ("pattern_mean.3", "pattern_mean.* pattern_sum.*", "resid_post.3", "resid_post.* z.* logits"):
        extraction = Extraction(sites, "all" if "pattern" in sites else "last", keys="all")
        extraction.run(model, prompts, progress=False)  # what is tried once
        with LiveBytes() as live:
            extraction.run(model, prompts, progress=False)
        peaks[sites] = live.peak
    with LiveBytes() as bare, torch.no_grad():
        plain("llama")(input_ids=torch.tensor(prompts[0]), use_cache=False)
    assert peaks["pattern_mean.* pattern_sum.*"] < 1.3 * peaks["pattern_mean.3"]
    assert peaks["resid_post.3"] < bare.peak  # the head was not run
    assert peaks["resid_post.* z.* logits"] < 1.2 * bare.peak  # at all positions they are another 1.5


def test_what_cannot_be_extracted_is_refused() -> None:
    model = wrapped("llama")
    for given, message in [
        (dict(sites="resid_pots.3"), "Did you mean 'resid_post'"),
        (dict(sites="patern_ratio.3"), "Did you mean 'pattern_ratio'"),
        (dict(sites="pattern_ratio"), "needs layers"),
        (dict(sites="last_norm.3"), "no part of a layer"),
        (dict(sites=""), "expected sites, means or both"),
        (dict(sites="logits", positions="fist"), "Did you mean 'first'"),
        (dict(sites="scores.1", mean_over_positions=True), "no mean over positions"),
        (dict(sites="z.1", means="input_ids"), "token ids have no mean"),
    ]:
        with pytest.raises(InterpError, match=message):
            Extraction(**given)
    for sites, message in [("pattern_mean.9", "layer 9"), ("projected_value.1.h7", "7"), ("resid_post.12", "12")]:
        with pytest.raises(InterpError, match=message):
            Extraction(sites).run(model, RAGGED, progress=False)
    with pytest.raises(InterpError, match=r"position '5' is out of range"):
        Extraction("resid_post.1", 5).run(model, RAGGED, progress=False)
    gated = StandardizedTransformer(build_family("qwen3_next"), tokenizer=tiny_tokenizer(), verify=False)
    attends = next(
        layer for layer in range(gated.num_layers) if gated.attention_access.available("pattern", layer) is None
    )
    with pytest.raises(InterpError, match="not the sum of its values"):
        Extraction(f"projected_value.{attends}").run(gated, [[1, 2, 3]], progress=False)
    result = Extraction("resid_post.1 z.2").run(model, RAGGED, progress=False)
    with pytest.raises(InterpError, match=r"has no 'resid_post.2'"):
        result["resid_post.2"]


def test_spans_of_prompts_and_spans_that_the_caller_adds() -> None:
    model = wrapped("llama")
    prompts = [Prompt("king king", spans={"word": (5, 9)}), Prompt("hello hello cat", spans={"word": (6, 11)})]
    result = Extraction("resid_post.1", "word.last word.all").run(model, prompts, progress=False)
    for row, prompt in enumerate(prompts):
        start, stop = prompt.encode(model.tokenizer).spans["word"]
        assert result.tokens("word.all")[row] == list(range(start, stop))
        assert result.tokens("word.last")[row] == [stop - 1]
    batches = [{"input_ids": ids, "half": len(ids) // 2} for ids in RAGGED]
    result = Extraction("resid_post.1", "second.all").run(
        model, batches, progress=False,
        spans=lambda batch, encoded: [
            {"second": (half, len(one.input_ids))} for half, one in zip(batch["half"], encoded, strict=True)
        ],
    )  # fmt: skip
    assert result.tokens("second.all") == [[4, 5, 6, 7, 8], [1, 2], [2, 3, 4]]
    whole = Extraction("resid_post.1", "all").run(model, RAGGED, progress=False)
    close(result["resid_post.1"][2, :3], whole["resid_post.1"][2, 2:5])

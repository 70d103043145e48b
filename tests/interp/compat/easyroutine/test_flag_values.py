"""Every flag of `ExtractionConfig`, against plain torch hooks; and what must add up, whatever the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import InterpError
from interp.compat.easyroutine import ActivationCache, ExtractionConfig, HookedModel
from tests.interp.compat.easyroutine.plain import EXAMPLES, padded, plain_keys

Hooked = Callable[[str], HookedModel]
LAYERS, HEADS = 4, 4
TOLERANCE = dict(rtol=1e-4, atol=1e-5)

# Flag -> its keys, of a layer and a head.
KEYS = {
    "extract_resid_in": "resid_in_{i}",
    "extract_resid_mid": "resid_mid_{i}",
    "extract_resid_out": "resid_out_{i}",
    "extract_resid_in_post_layernorm": "resid_in_post_layernorm_{i}",
    "extract_attn_pattern": "pattern_L{i}H{h}",
    "extract_values_vectors_projected": "projected_value_L{i}H{h}",
    "extract_values": "values_{i}",
    "extract_head_out": "head_out_L{i}H{h}",
    "extract_attn_out": "attn_out_{i}",
    "extract_attn_in": "attn_in_{i}",
    "extract_embed": "input_embeddings",
    "extract_head_values": "head_values_L{i}H{h}",
    "extract_head_keys": "head_keys_L{i}H{h}",
    "extract_head_queries": "head_queries_L{i}H{h}",
    "extract_keys": "keys_L{i}",
    "extract_queries": "queries_L{i}",
    "extract_head_values_projected": "projected_value_L{i}H{h}",
    "extract_head_keys_projected": "projected_key_L{i}H{h}",
    "extract_head_queries_projected": "projected_query_L{i}H{h}",
    "extract_mlp_out": "mlp_out_{i}",
    "save_logits": "logits",
}
PAGE = (
    "extract_resid_in", "extract_resid_mid", "extract_resid_out", "extract_resid_in_post_layernorm",
    "extract_attn_pattern", "extract_avg_attn_pattern", "extract_values_vectors_projected",
    "extract_avg_values_vectors_projected", "extract_values", "extract_head_out", "extract_attn_out", "extract_attn_in",
    "save_input_ids", "extract_avg", "attn_heads",
)  # fmt: skip


def keys_of(flag: str) -> list[str]:
    return list(dict.fromkeys(KEYS[flag].format(i=i, h=h) for i in range(LAYERS) for h in range(HEADS)))


@pytest.fixture(scope="module")
def twins(hooked: Hooked) -> list[dict[str, Tensor]]:
    """By plain hooks, the keys of each of `EXAMPLES`."""
    return [plain_keys(hooked("biased").hf_model, ids) for ids in EXAMPLES]


def at(value: Tensor, key: str, tokens: list[int]) -> Tensor:
    """Of a plain value the positions, of a pattern on both axes."""
    return value[tokens][:, tokens] if key.startswith("pattern") else value[tokens]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("flag", KEYS)
def test_a_flag_gives_its_keys_at_each_examples_positions(
    hooked: Hooked, twins: list[dict[str, Tensor]], flag: str, side: str
) -> None:
    cache = hooked("biased").forward(padded(EXAMPLES, side), ["last", (1, 3), "first"], **{flag: True})
    expected = {"mapping_index", "token_dict", "input_ids", "logits", *keys_of(flag)}
    assert set(cache.keys()) == expected
    for key in keys_of(flag):
        for row, (ids, twin) in enumerate(zip(EXAMPLES, twins, strict=True)):
            want = at(twin[key], key, [len(ids) - 1, 1, 2, 0])
            torch.testing.assert_close(cache[key][row].as_subclass(Tensor), want, **TOLERANCE)
    assert cache["mapping_index"] == {"last": [0], (1, 3): [1, 2], "first": [3]}
    assert cache["token_dict"][1] == {"last": [6], (1, 3): [1, 2], "first": [0]}


def test_the_page_s_flags_are_there_and_off() -> None:
    config = ExtractionConfig()
    assert ExtractionConfig.names()[: len(PAGE)] == list(PAGE)
    assert not any(getattr(config, flag) for flag in PAGE if flag != "attn_heads") and config.attn_heads == "all"
    assert not config.is_not_empty()
    for field in fields(ExtractionConfig):
        if field.type == "bool":
            assert ExtractionConfig(**{field.name: True}).is_not_empty(), field.name
    assert ExtractionConfig(attn_pattern_row_positions=["last"]).is_not_empty()
    assert config.to_dict()["attn_pattern_avg"] == "none"
    with pytest.raises(InterpError, match="Did you mean 'mean'"):
        ExtractionConfig(attn_pattern_avg="meen")  # type: ignore[arg-type]


def test_means_over_examples_count_each_example(hooked: Hooked, twins: list[dict[str, Tensor]]) -> None:
    model, heads = hooked("biased"), [{"layer": 2, "head": 3}, {"layer": 0, "head": 1}]
    positions = [[len(ids) - 1, 0, 1] for ids in EXAMPLES]
    patterns = [twin["pattern_L2H3"][rows][:, rows] for twin, rows in zip(twins, positions, strict=True)]
    norms = [twin["projected_value_L2H3"][rows].norm(dim=-1) for twin, rows in zip(twins, positions, strict=True)]
    mean = torch.stack(patterns).mean(0, keepdim=True)
    weighted = torch.stack([p * n for p, n in zip(patterns, norms, strict=True)]).mean(0, keepdim=True)
    flags: dict[str, Any] = dict(
        extract_avg_attn_pattern=True, extract_avg_values_vectors_projected=True, attn_heads=heads
    )
    names = ["last", (0, 2)]
    for loader in ([padded(EXAMPLES, "left")], [padded([ids], "left") for ids in EXAMPLES]):
        cache = model.extract_cache(loader, names, **flags)
        assert {key for key in cache if "_L" in key} == {
            f"{kind}_L{one['layer']}H{one['head']}" for one in heads for kind in ("avg_pattern", "projected_value")
        }
        torch.testing.assert_close(cache["avg_pattern_L2H3"], mean, **TOLERANCE)
        torch.testing.assert_close(cache["projected_value_L2H3"], weighted, **TOLERANCE)
    both = model.forward(padded(EXAMPLES, "left"), names, extract_values_vectors_projected=True, **flags)
    torch.testing.assert_close(both["avg_projected_value_L2H3"], weighted, **TOLERANCE)
    torch.testing.assert_close(
        both["projected_value_L2H3"][1].as_subclass(Tensor), twins[1]["projected_value_L2H3"][positions[1]], **TOLERANCE
    )
    external = ActivationCache()
    for index, ids in enumerate(EXAMPLES):
        one = model.forward(padded([ids], "left"), names, external_cache=external, batch_idx=index, **flags)
        assert "avg_pattern_L2H3" not in one
    torch.testing.assert_close(external["avg_pattern_L2H3"], mean, **TOLERANCE)
    model.forward(padded(EXAMPLES[:1], "left"), names, external_cache=external, batch_idx=0, **flags)  # begins anew
    torch.testing.assert_close(external["avg_pattern_L2H3"], patterns[0][None], **TOLERANCE)
    later = model.forward(
        padded(EXAMPLES, "left"), names, extract_attn_pattern=True, avg_over_example=True,
        extract_head_values_projected=True, attn_heads=heads,
    )  # fmt: skip
    assert "pattern_L2H3" not in later
    torch.testing.assert_close(later["avg_pattern_L2H3"], mean, **TOLERANCE)


def test_averages_over_the_positions_of_each_name(hooked: Hooked, twins: list[dict[str, Tensor]]) -> None:
    for flag in ("extract_avg", "avg"):
        cache = hooked("biased").forward(
            padded(EXAMPLES, "left"), ["all", "last"], extract_resid_out=True, extract_head_out=True, **{flag: True}
        )
        assert cache["mapping_index"] == {"all": [0], "last": [1]}
        for key in ("resid_out_3", "head_out_L1H2"):
            for row, twin in enumerate(twins):
                want = torch.stack([twin[key].mean(0), twin[key][-1]])
                torch.testing.assert_close(cache[key][row].as_subclass(Tensor), want, **TOLERANCE)
        assert cache.map_to_dict("resid_out_3")["all"].shape == (3, 32)


def test_blocks_of_a_pattern(hooked: Hooked, twins: list[dict[str, Tensor]]) -> None:
    def block(twin: dict[str, Tensor], rows: list[int], columns: list[int], how: str) -> Tensor:
        weights = twin["pattern_L1H2"][rows][:, columns]
        if how == "sum":
            return weights.sum()
        uniform = torch.tensor([[float(c <= r) / (r + 1) for c in columns] for r in rows])
        return weights.mean() if how == "mean" else weights.mean() / uniform.mean()

    model = hooked("biased")
    for how in ("mean", "sum", "baseline_ratio"):
        for rows in (["last", (1, 4)], None):
            cache = model.forward(
                padded(EXAMPLES, "right"), [(0, 3), "last"], extract_attn_pattern=True, attn_pattern_avg=how,
                attn_pattern_row_positions=rows, attn_heads=[{"layer": 1, "head": 2}],
            )  # fmt: skip
            for row, twin in enumerate(twins):
                end = [len(EXAMPLES[row]) - 1]
                named = [[0, 1, 2], end] if rows is None else [end, [1, 2, 3]]
                want = torch.stack(
                    [torch.stack([block(twin, one, other, how) for other in ([0, 1, 2], end)]) for one in named]
                )
                # no query sees such keys: 0 / 0
                torch.testing.assert_close(cache["pattern_L1H2"][row], want, equal_nan=True, **TOLERANCE)
    rows_alone = model.forward(padded(EXAMPLES, "left"), ["all"], attn_pattern_row_positions=["last"])
    assert rows_alone["pattern_L0H0"].shape == (3, 1, 7)
    torch.testing.assert_close(rows_alone["pattern_L3H1"][1, 0], twins[1]["pattern_L3H1"][-1], **TOLERANCE)
    assert rows_alone["pattern_L3H1"][0, 0, 4:].isnan().all()


def test_patterns_are_whole_where_no_positions_are_named(hooked: Hooked, twins: list[dict[str, Tensor]]) -> None:
    model, flags = (
        hooked("biased"),
        dict(extract_attn_pattern=True, extract_avg_attn_pattern=True, extract_resid_in=True),
    )
    for cache in (
        model.forward(padded(EXAMPLES, "left"), **flags),  # type: ignore[arg-type]
        model.extract_cache([padded([ids], "left") for ids in EXAMPLES], **flags),  # type: ignore[arg-type]
    ):
        assert cache["resid_in_0"].shape == (3, 1, 32) and cache["avg_pattern_L0H0"].shape == (1, 7, 7)
        for row, (ids, twin) in enumerate(zip(EXAMPLES, twins, strict=True)):
            found = cache["pattern_L2H1"][row]
            torch.testing.assert_close(found[: len(ids), : len(ids)], twin["pattern_L2H1"], **TOLERANCE)
            assert found[len(ids) :].isnan().all() and found[:, len(ids) :].isnan().all()


def test_statistics_of_what_enters_the_last_norm(hooked: Hooked, twins: list[dict[str, Tensor]]) -> None:
    cache = hooked("biased").forward(padded(EXAMPLES, "left"), ["last", "first"], extract_last_layernorm=True)
    for row, twin in enumerate(twins):
        entering = twin["norm_in"][[-1, 0]]
        second = entering.pow(2).mean(-1)
        for name, want in (
            ("mean", entering.mean(-1)), ("second_moment", second), ("variance", second - entering.mean(-1) ** 2),
        ):  # fmt: skip
            torch.testing.assert_close(cache["last_layernorm"][name][row], want, **TOLERANCE)


def test_gradients_of_the_embeddings(hooked: Hooked) -> None:
    model = hooked("biased")
    cache = model.forward(
        padded(EXAMPLES, "left"), ["all"], extract_embed=True, keep_gradient=True, vocabulary_index=[7, 8, 9]
    )
    for row, ids in enumerate(EXAMPLES):
        given = model.hf_model.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
        model.hf_model(inputs_embeds=given).logits[0, -1, 7 + row].backward()
        assert given.grad is not None
        found = cache["input_embeddings_gradients"][row, : len(ids)]
        torch.testing.assert_close(found, given.grad[0], rtol=1e-3, atol=1e-4)
    model.hf_model.zero_grad()
    with pytest.raises(InterpError, match="vocabulary_index"):
        model.forward(padded(EXAMPLES, "left"), keep_gradient=True)


@pytest.mark.parametrize("family", ["biased", "llama", "gpt2", "qwen3", "gemma2", "gpt_neox"])
def test_what_must_add_up(hooked: Hooked, family: str) -> None:
    model = hooked(family)
    parallel = model.standardized.parallel
    flags = dict.fromkeys(
        ["extract_resid_in", "extract_resid_out", "extract_attn_out", "extract_mlp_out", "extract_head_out",
         "extract_attn_pattern", "extract_head_values", "extract_values"], True,
    )  # fmt: skip
    if not parallel:
        flags["extract_resid_mid"] = True
    cache = model.forward(padded(EXAMPLES, "left"), ["all"], **flags)
    for i in range(LAYERS):
        before, attention, mlp = cache[f"resid_in_{i}"], cache[f"attn_out_{i}"], cache[f"mlp_out_{i}"]
        torch.testing.assert_close(cache[f"resid_out_{i}"], before + attention + mlp, equal_nan=True, **TOLERANCE)
        if not parallel:
            torch.testing.assert_close(cache[f"resid_mid_{i}"], before + attention, equal_nan=True, **TOLERANCE)
        heads = sum(cache[f"head_out_L{i}H{h}"].as_subclass(Tensor) for h in range(HEADS))
        left = (attention - heads)[0, :4]  # the bias, the same at each position
        torch.testing.assert_close(left, left[:1].expand_as(left), **TOLERANCE)
        if family in ("biased", "llama"):
            bias = model.get_module_from_string(f"model.layers[{i}].self_attn.o_proj").bias
            torch.testing.assert_close(left[0], torch.zeros(32) if bias is None else bias.detach(), **TOLERANCE)
        kv = model.standardized.num_kv_heads
        packed = cache[f"values_{i}"].unflatten(-1, (kv, -1))
        for h in range(HEADS):
            own = cache[f"head_values_L{i}H{h}"].as_subclass(Tensor)
            torch.testing.assert_close(own, packed[:, :, h // (HEADS // kv)], equal_nan=True)
            rows = cache[f"pattern_L{i}H{h}"].nansum(-1)
            torch.testing.assert_close(rows[0, :4], torch.ones(4))
            assert not rows[0, 4:].any()
    if family != "gpt_neox":
        return
    with pytest.raises(InterpError, match="parallel residual"):
        model.forward(padded(EXAMPLES, "left"), extract_resid_mid=True)


def test_batches_of_any_size_give_what_single_examples_give(hooked: Hooked) -> None:
    model = hooked("biased")
    flags = {field.name: True for field in fields(ExtractionConfig) if field.type == "bool"}
    for name in ("avg", "extract_avg", "avg_over_example", "keep_gradient"):
        del flags[name]
    loaders = [
        [padded([ids], "left") for ids in EXAMPLES],
        [padded(EXAMPLES, "left")],
        [padded(EXAMPLES[:2], "right"), padded(EXAMPLES[2:], "right")],
    ]
    first, *others = (model.extract_cache(loader, ["all", "last"], save_logits=True, **flags) for loader in loaders)
    assert first["pattern_L0H0"].shape == (3, 8, 8) and first["mapping_index"] == {"all": list(range(7)), "last": [7]}
    assert first["input_ids"].tolist() == [[*ids, *[0] * (7 - len(ids))] for ids in EXAMPLES]
    for other in others:
        assert list(first.keys()) == list(other.keys())
        for key, value in first.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(
                    value.as_subclass(Tensor), other[key].as_subclass(Tensor), equal_nan=True, rtol=1e-4, atol=1e-4
                )
            elif key == "last_layernorm":
                for name, number in value.items():
                    torch.testing.assert_close(number, other[key][name], equal_nan=True, rtol=1e-4, atol=1e-4)
            else:
                assert value == other[key], key


def test_heads_that_are_named_alone_are_taken(hooked: Hooked) -> None:
    model, inputs = hooked("llama"), padded(EXAMPLES, "left")
    heads = [{"layer": 3, "head": 0}]
    for flag in (
        "extract_attn_pattern",
        "extract_head_out",
        "extract_head_queries",
        "extract_values_vectors_projected",
    ):
        by_config = model.forward(inputs, extraction_config=ExtractionConfig(attn_heads=heads, **{flag: True}))
        by_argument = model.forward(inputs, attn_heads=heads, **{flag: True})
        assert [key for key in by_config if "_L" in key] == [KEYS[flag].format(i=3, h=0)]
        assert by_config.keys() == by_argument.keys()
    for wrong, message in (
        ([{"layer": 4, "head": 0}], "layer 4 has no heads"),
        ([{"layer": 0, "head": 4}], "4 heads, from 0"),
        ([{"layer": 0}], "layer and head"),
        ("some", "'all'"),
    ):
        with pytest.raises(InterpError, match=message):
            model.forward(inputs, extract_attn_pattern=True, attn_heads=wrong)

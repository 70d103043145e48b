"""The attention knock-out against whole prompts run one by one, with edges cut where torch takes the softmax."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.architectures import submodule
from interp.errors import InterpError
from interp.lenses import attention_knockout
from interp.lenses.reading import windows_of
from interp.model.verdicts import verdicts_of
from interp.patching import CleanRun
from tests.families import build
from tests.interp.lenses.attention_twins import cut_logits
from tests.interp.lenses.twins import assert_equal, expected
from tests.made import watching
from tests.tiny import tiny_tokenizer

# Grouped queries, a sliding window alone and beside full attention, softcap, post-norm, parallel layers with one norm
# and with two, learned positions, sinks, experts, latent attention, chunks; ALiBi inside the mask.
FAST = [
    "llama", "mistral", "gemma2", "gemma3_text", "olmo2", "gptj", "gpt_neox", "phi", "cohere", "cohere2", "gpt2", "opt",
    "gpt_oss", "mixtral", "deepseek_v3", "llama4_text", "falcon", "stablelm_parallel", "gpt_neo", "mpt",
]  # fmt: skip
# Their masks hold a row for each of the batch; layers carry a state; keys are chosen (Doge).
SLOW = ["falcon_alibi", "bloom", "jamba", "recurrent_gemma", "doge", "openai-gpt"]

PROMPTS = [
    [1, 17, 250, 33, 94, 301, 77],
    [1, 60, 250, 33, 94, 301, 12],
    [1, 88, 5],
    [1, 40, 41, 42, 43, 44, 45, 46, 47, 48],
]
BLOCKS = [
    {"first": [0], "subject": [2, 3], "itself": [6, 5]},
    {"first": [0], "subject": [1, 4, 5], "itself": [6]},
    {"first": [0], "subject": [1], "itself": [2]},
    {"first": [0], "subject": [6, 7], "itself": [9]},
]
QUERIES = [[6], [3, 6], [2], [8, 9]]
GROUPS = [[[3, 9], [200]], [[5], [77, 78]], [[120], [7]], [[301], [2, 4]]]


@cache
def loaded(name: str) -> tuple[StandardizedTransformer, nn.Module]:
    """The standardized model as it is loaded by default, and a plain one with eager attention."""
    plain: Any = build(name)
    ours: Any = build(name)
    plain.config._attn_implementation = "eager"
    if name.startswith("falcon"):  # under sdpa it never forms the scores
        ours.config._attn_implementation = "eager"
    return StandardizedTransformer(ours, tokenizer=tiny_tokenizer(), verify=False), plain


def by_hand(
    name: str,
    windows: Sequence[range],
    *,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    blocks: Sequence[Mapping[str, Sequence[int]]] = BLOCKS,
    queries: Sequence[Sequence[int]] = QUERIES,
    groups: Sequence[Sequence[Sequence[int]]] = GROUPS,
    heads: Mapping[int, Sequence[int]] | None = None,
) -> list[dict[str, np.ndarray]]:
    """What the lens should say of each example, its arrays (window, block, ...)."""
    model, plain = loaded(name)
    layers: Any = submodule(plain, model.architecture.layers)
    examples = []
    for ids, named, asking, wanted in zip(prompts, blocks, queries, groups, strict=True):
        own = cut_logits(plain, layers, ids, (), ())
        logits = []
        for window in windows:
            attending = [layer for layer in window if model.has(f"attn_in.{layer}")]
            for keys in named.values():
                edges = [(query, key) for query in asking for key in keys]
                logits.append(cut_logits(plain, layers, ids, attending, edges, heads))
        flat = expected([*logits, own], wanted, 3, own)  # `kl` compares with the last
        one = {
            key: values[:-1].reshape(len(windows), len(named), *values.shape[1:])
            for key, values in flat.items()
            if key != "model_top_id"
        }
        examples.append({**one, "model_top_id": flat["model_top_id"], "baseline": flat["log_prob"][-1]})
    return examples


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_equals_the_twin(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = loaded(name)
    layers = [1, 3] if name in ("jamba", "recurrent_gemma") else [0, 1, 3]
    with caplog.at_level(logging.WARNING, logger="interp"):
        result = attention_knockout(
            model, PROMPTS, BLOCKS, GROUPS, window=2, layers=layers, query_positions=QUERIES, top_k=3, batch_size=2
        )
    windows = [range(layer, min(layer + 2, model.num_layers)) for layer in layers]
    assert_equal(result.arrays(), by_hand(name, windows), atol=1e-5)
    assert verdicts_of(model)["attention that is cut"] == (name in FAST)
    assert len([record for record in caplog.records if "(slow)" in record.message]) == (name in SLOW)


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_some_heads_equal_the_twin(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """One head alone and all but one, other ones by layer: of heads that share their keys, some are cut."""
    model, _ = loaded(name)
    count = model.num_heads
    assert count > 1
    attending = [layer for layer in range(model.num_layers) if model.has(f"attn_in.{layer}")]
    heads = {layer: [1] if index % 2 else [0, *range(2, count)] for index, layer in enumerate(attending)}
    layers = [1, 3] if name in ("jamba", "recurrent_gemma") else [0, 1, 3]
    with caplog.at_level(logging.WARNING, logger="interp"):
        result = attention_knockout(
            model,
            PROMPTS,
            BLOCKS,
            GROUPS,
            window=2,
            layers=layers,
            heads=heads,
            query_positions=QUERIES,
            top_k=3,
            batch_size=2,
        )
    windows = [range(layer, min(layer + 2, model.num_layers)) for layer in layers]
    assert_equal(result.arrays(), by_hand(name, windows, heads=heads), atol=1e-5)
    assert verdicts_of(model)["attention that is cut in some heads"] == (name in FAST)


def test_the_same_heads_in_every_layer_and_layers_without_any() -> None:
    model, _ = loaded("llama")
    arguments: Any = dict(window=2, layers=[0, 2], query_positions=QUERIES, top_k=3)
    listed = attention_knockout(model, PROMPTS, BLOCKS, GROUPS, heads=[2, 0], **arguments)
    wanted = by_hand("llama", [range(2), range(2, 4)], heads={layer: [0, 2] for layer in range(4)})
    assert_equal(listed.arrays(), wanted, atol=1e-5)
    partly = attention_knockout(model, PROMPTS, BLOCKS, GROUPS, heads={1: [3], 2: range(2)}, **arguments)
    assert_equal(partly.arrays(), by_hand("llama", [range(2), range(2, 4)], heads={1: [3], 2: [0, 1]}), atol=1e-5)


def test_all_heads_are_what_no_heads_mean_and_each_alone_is_less() -> None:
    model, _ = loaded("gemma2")
    every = attention_knockout(model, PROMPTS, BLOCKS, GROUPS, window=2, query_positions=QUERIES)
    named = attention_knockout(model, PROMPTS, BLOCKS, GROUPS, window=2, query_positions=QUERIES, heads=range(4))
    for key, values in every.arrays().items():
        np.testing.assert_allclose(named.arrays()[key], values, atol=1e-5, err_msg=key)
    alone = attention_knockout(model, PROMPTS, BLOCKS, GROUPS, window=2, query_positions=QUERIES, heads=[0])
    assert np.abs(alone.log_prob - every.log_prob).max() > 1e-3


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["llama", "mistral", "gpt2", "mpt"]),
    window=st.integers(1, 4),
    heads=st.dictionaries(st.integers(0, 3), st.sets(st.integers(0, 3), min_size=1).map(sorted), min_size=1),
    way=st.sampled_from(["fast", "slow"]),
)
def test_any_heads(name: str, window: int, heads: dict[int, list[int]], way: str) -> None:
    model, _ = loaded(name)
    layers = [layer for layer in range(4) if any(layer <= held < layer + window for held in heads)]
    with pytest.MonkeyPatch.context() as patch:
        if way == "slow":
            patch.setitem(verdicts_of(model), "attention that is cut in some heads", False)
        result = attention_knockout(
            model,
            PROMPTS[:2],
            BLOCKS[:2],
            GROUPS[:2],
            window=window,
            layers=layers,
            heads=heads,
            query_positions=QUERIES[:2],
            top_k=3,
        )
    windows = [range(layer, min(4, layer + window)) for layer in layers]
    some: Any = dict(prompts=PROMPTS[:2], blocks=BLOCKS[:2], queries=QUERIES[:2], groups=GROUPS[:2])
    assert_equal(result.arrays(), by_hand(name, windows, heads=heads, **some), atol=1e-5, ties=2e-6)


def test_heads_that_cannot_be_told_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = StandardizedTransformer(build("llama"), tokenizer=tiny_tokenizer(), verify=False)
    monkeypatch.setattr("interp.patching.changed_attention.heads_in", lambda *_: 2)
    with pytest.raises(InterpError, match=r"scores of 4 heads, and 2 by its config, so heads cannot be told apart"):
        attention_knockout(model, PROMPTS, BLOCKS, GROUPS, window=2, heads=[0], query_positions=QUERIES)


def test_the_last_token_and_the_models_own_answer_are_what_is_meant(caplog: pytest.LogCaptureFixture) -> None:
    """Geva et al.: the last token may not look, and the probability of what the model says is measured."""
    model, plain = loaded("llama")
    layers: Any = submodule(plain, model.architecture.layers)
    own = [int(cut_logits(plain, layers, ids, (), ()).argmax()) for ids in PROMPTS]
    blocks = [{"first": [0], "before": list(range(len(ids) - 1))} for ids in PROMPTS]
    result = attention_knockout(model, PROMPTS, blocks, window=None, top_k=3)
    assert dict(result.coordinates) == {"example": (0, 1, 2, 3), "window": (0,), "block": ("first", "before")}
    assert result.group_names == ("own",)
    assert result.model_top_id.tolist() == own
    last = [[len(ids) - 1] for ids in PROMPTS]
    wanted = by_hand("llama", [range(4)], blocks=blocks, queries=last, groups=[[[token]] for token in own])
    assert_equal(result.arrays(), wanted, atol=1e-5)


def test_no_window_reaches_the_last_layer() -> None:
    model, _ = loaded("gemma2")
    result = attention_knockout(model, PROMPTS, BLOCKS, GROUPS, window=None, layers=[0, 2], query_positions=QUERIES)
    wide = attention_knockout(model, PROMPTS, BLOCKS, GROUPS, window=9, layers=[0, 2], query_positions=QUERIES)
    np.testing.assert_array_equal(result.log_prob, wide.log_prob)


def test_windows_are_centred_as_gevas_are() -> None:
    for window in range(1, 8):
        for layer, found in windows_of(None, window, 6, centred=True).items():
            geva = range(max(0, layer - window // 2), min(6, layer - (-window // 2)))
            assert found == geva
    assert windows_of([1, 4], 3, 6) == {1: range(1, 4), 4: range(4, 6)}
    assert windows_of(None, None, 6) == {0: range(6)}
    model, _ = loaded("llama")
    result = attention_knockout(
        model, PROMPTS, BLOCKS, GROUPS, window=3, centred=True, query_positions=QUERIES, top_k=3
    )
    windows = [range(2), range(3), range(1, 4), range(2, 4)]
    assert result.along("window") == (0, 1, 2, 3)
    assert_equal(result.arrays(), by_hand("llama", windows), atol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_batches_order_and_memory_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = loaded(name)
    whole = attention_knockout(model, PROMPTS, BLOCKS, GROUPS, window=2, query_positions=QUERIES)
    backwards = [part[::-1] for part in (PROMPTS, BLOCKS, GROUPS, QUERIES)]
    monkeypatch.setattr(
        import_module("interp.lenses.attention_knockout"), "WALKING_TOKENS", 1
    )  # one entry walks at a time
    other = attention_knockout(model, *backwards[:3], window=2, query_positions=backwards[3], batch_size=1)
    for key, values in whole.arrays().items():
        np.testing.assert_allclose(other.arrays()[key], values[::-1], atol=1e-4, rtol=1e-4, err_msg=key)


def test_rows_that_walk_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = loaded("llama")
    through, tokens = CleanRun.through, []

    def watched(self: CleanRun, layer: int, hidden: Tensor, blocked: Tensor | None = None) -> Tensor:
        tokens.append(len(hidden) * (self.prefix.length + hidden.shape[1]))
        return through(self, layer, hidden, blocked)

    monkeypatch.setattr(CleanRun, "through", watched)
    for module in ("interp.lenses.attention_knockout", "interp.batching"):
        monkeypatch.setattr(import_module(module), "WALKING_TOKENS", 40)
    for copies in (1, 5):  # 3 blocks in 4 windows
        attention_knockout(model, PROMPTS * copies, BLOCKS * copies, GROUPS * copies, window=2)
        assert max(tokens) <= 40


def test_the_slow_way_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = loaded("gpt_oss")
    fast = attention_knockout(model, PROMPTS, BLOCKS, GROUPS, window=2, query_positions=QUERIES)
    monkeypatch.setitem(verdicts_of(model), "attention that is cut", False)
    slow = attention_knockout(model, PROMPTS, BLOCKS, GROUPS, window=2, query_positions=QUERIES)
    for key, values in fast.arrays().items():
        np.testing.assert_allclose(slow.arrays()[key], values, atol=1e-4, rtol=1e-4, err_msg=key)


POSITIONS = st.sets(st.integers(0, 6), min_size=1, max_size=3).map(sorted)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["llama", "mistral", "gpt2", "cohere"]),
    window=st.integers(1, 5),
    layers=st.sets(st.integers(0, 3), min_size=1).map(sorted),
    centred=st.booleans(),
    keys=st.lists(POSITIONS, min_size=1, max_size=3),
    queries=POSITIONS,
)
def test_any_window_and_positions(
    name: str, window: int, layers: list[int], centred: bool, keys: list[list[int]], queries: list[int]
) -> None:
    model, _ = loaded(name)
    blocks = [{f"block {number}": block for number, block in enumerate(keys)}] * 2
    arguments: Any = dict(prompts=PROMPTS[:2], blocks=blocks, queries=[queries] * 2, groups=GROUPS[:2])
    try:
        result = attention_knockout(
            model,
            PROMPTS[:2],
            blocks,
            GROUPS[:2],
            window=window,
            layers=layers,
            centred=centred,
            query_positions=[queries] * 2,
            top_k=3,
        )
    except InterpError:  # nothing to cut, or nothing left
        reach = {"mistral": 4}.get(name, 7)
        seen = [set(range(max(0, query - reach + 1), query + 1)) for query in queries]
        assert any(min(block) > max(queries) or any(own <= set(block) for own in seen) for block in keys)
        return
    windows = windows_of(layers, window, 4, centred=centred)
    assert_equal(result.arrays(), by_hand(name, list(windows.values()), **arguments), atol=1e-5, ties=2e-6)


@pytest.mark.parametrize("way", ["fast", "slow"])
def test_a_softmax_over_nothing_is_refused(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = loaded("llama")
    if way == "slow":
        monkeypatch.setitem(verdicts_of(model), "attention that is cut", False)
    everything = [{"some": [0], "all": list(range(len(ids)))} for ids in PROMPTS[1:3]]
    with pytest.raises(InterpError, match="example 1 blocks everything that its token -1 sees in layer 1"):
        attention_knockout(model, PROMPTS[1:3], everything, window=1, layers=[1])
    # The last four are all that a layer with a window of four sees.
    model, _ = loaded("gemma2")
    if way == "slow":
        monkeypatch.setitem(verdicts_of(model), "attention that is cut", False)
    blocks = [{"near": [3, 4, 5, 6]}]
    with pytest.raises(InterpError, match="example 0 blocks everything that its token -1 sees in layer 0"):
        attention_knockout(model, PROMPTS[:1], blocks, window=2, layers=[0])
    attention_knockout(model, PROMPTS[:1], blocks, window=1, layers=[1])  # full attention


@pytest.mark.parametrize("way", ["fast", "slow"])
def test_a_sink_is_left_where_nothing_else_is(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = loaded("gpt_oss")
    attention_knockout(model, PROMPTS[:1], BLOCKS[:1], window=1)
    if way == "slow":
        monkeypatch.setitem(verdicts_of(model), "attention that is cut", False)
    blocks = [{"all": list(range(len(ids)))} for ids in PROMPTS]
    result = attention_knockout(model, PROMPTS, blocks, GROUPS, window=1, query_positions=QUERIES, top_k=3)
    assert_equal(result.arrays(), by_hand("gpt_oss", [range(n, n + 1) for n in range(4)], blocks=blocks), atol=1e-5)


def test_what_a_layer_does_not_see_may_be_cut_to_no_effect() -> None:
    model, _ = loaded("mistral")
    result = attention_knockout(model, PROMPTS[:1], [{"far": [0, 1], "near": [5]}], window=1)
    np.testing.assert_allclose(result.kl[0, :, 0], 0, atol=1e-6)
    assert (result.kl[0, :, 1] > 1e-6).all()


def test_bfloat16_is_near_float32() -> None:
    """Stated tolerance: 0.05 in probability; bfloat16 has 8 bits of mantissa, rounded at every layer."""
    coarse = StandardizedTransformer(build("llama").bfloat16(), tokenizer=tiny_tokenizer(), verify=False)
    result = attention_knockout(coarse, PROMPTS, BLOCKS, GROUPS, window=2, query_positions=QUERIES, top_k=3)
    assert verdicts_of(coarse)["attention that is cut"]
    wanted = np.stack([one["log_prob"] for one in by_hand("llama", [range(n, min(n + 2, 4)) for n in range(4)])])
    np.testing.assert_allclose(np.exp(result.log_prob), np.exp(wanted), atol=0.05)


@pytest.mark.parametrize("way", ["fast", "slow"])
def test_the_model_is_as_it_was_also_after_an_exception(way: str) -> None:
    module: Any = build("llama")
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    attention_knockout(model, PROMPTS[:1], BLOCKS[:1], window=1)
    verdicts_of(model)["attention that is cut"] = way == "fast"
    ids = torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        before = module(input_ids=ids).logits
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())

    def fail(*_: Any) -> None:
        raise MemoryError("in the middle")

    handle = module.model.layers[2].mlp.register_forward_hook(watching(fail))
    with pytest.raises(MemoryError, match="in the middle"):
        attention_knockout(model, PROMPTS[:1], BLOCKS[:1], window=1)
    handle.remove()
    assert sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()) == hooks
    with torch.no_grad():
        assert torch.equal(module(input_ids=ids).logits, before)


def test_no_examples() -> None:
    result = attention_knockout(loaded("llama")[0], [], [], [], window=1, top_k=4)
    assert result.top_ids.shape == (0, 4, 0, 4)
    assert result.along("block") == ()
    own = attention_knockout(loaded("llama")[0], [], [], window=1)
    assert own.log_prob.shape == (0, 4, 0, 1) and own.group_names == ("own",)


def test_models_that_cannot_be_cut_say_why() -> None:
    falcon = StandardizedTransformer(build("falcon"), tokenizer=tiny_tokenizer(), verify=False)
    with pytest.raises(
        InterpError, match=r"cannot be cut in FalconForCausalLM: .* Load with attn_implementation='eager'"
    ):
        attention_knockout(falcon, PROMPTS, BLOCKS, window=1)
    with pytest.raises(InterpError, match="No layer of this model has any"):
        attention_knockout(loaded("mamba")[0], PROMPTS, BLOCKS, window=1)
    with pytest.raises(InterpError, match=r"the window of layer 0 \(layers 0 to 0\) has no attention. .*: \[1, 3\]"):
        attention_knockout(loaded("jamba")[0], PROMPTS, BLOCKS, window=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window: expected at least 1 layer"),
        ({"window": None, "centred": True}, "centred: expected a window"),
        ({"layers": [2, 1]}, "ascending order"),
        ({"layers": [4]}, "layers of the model, 0 to 3"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"blocks": [{"a": [0]}]}, "blocks: expected one entry for each of 2 examples, got 1"),
        ({"blocks": [{"a": [0]}, {"b": [0]}]}, r"expected blocks \['a'\] in each example, got \['b'\] in example 1"),
        ({"blocks": [{}, {}]}, "expected blocks with names in each example"),
        ({"blocks": [{"a": [0]}, {"a": []}]}, r"blocks: 'a': example 1 has \[\], expected at least one token"),
        ({"blocks": [{"a": [-1]}, {"a": [0]}]}, r"example 0 has \[-1\]"),
        ({"blocks": [{"a": [0]}, {"a": [3]}]}, r"example 1 has \[3\], expected .* 0 to 2"),
        ({"query_positions": [[0], [1]], "blocks": [{"a": [1]}, {"a": [0]}]}, "none of the query positions"),
        ({"query_positions": [[1]]}, "query_positions: expected one entry for each of 2 examples, got 1"),
        ({"query_positions": [[1], [3]]}, r"query_positions example 1 has \[3\]"),
        ({"targets": [[]]}, "targets: expected one entry for each of 2 examples, got 1"),
        ({"targets": [[[400]], [[1]]]}, "token id 400 is outside the vocabulary"),
        ({"source": [[1, 400], [1, 2, 3]]}, "example 0 has ids 1 to 400"),
        ({"source": [[], [1, 2, 3]]}, "source: expected texts, Prompts or lists of token ids, got \\[\\]"),
        ({"top_k": 0}, "top_k"),
        ({"heads": [4]}, "heads: layer 0: expected query heads 0 to 3, at least one, got head 4"),
        ({"heads": [-1, 0]}, "got head -1"),
        ({"heads": []}, "at least one, got none"),
        ({"heads": {4: [0]}}, r"heads: layer 4 has no attention to cut. .* have: \[0, 1, 2, 3\]"),
        ({"heads": {1: [0]}}, r"the window of layer 0 \(layers 0 to 0\) has none of the heads, .* in layers \[1\]"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    arguments: Any = dict(source=[[1, 2], [1, 2, 3]], blocks=[{"a": [0]}, {"a": [1]}], targets=[[], []], window=1)
    with pytest.raises(InterpError, match=message):
        attention_knockout(loaded("llama")[0], **{**arguments, **changes})

"""Edges: exact patches and attributions against plain hooks, sums that have to hold, memory, and what is refused."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from interp import StandardizedTransformer
from interp.errors import InterpError
from interp.patching import (
    ComputationGraph,
    attribution_patching,
    edge_attribution_patching,
    exact_edge_effects,
    run_circuits,
)
from tests.families import build
from tests.interp.patching.edge_twin import EdgeTwin
from tests.tiny import tiny_model, tiny_tokenizer

CLEAN = [[1, 17, 250, 33, 94], [1, 88, 5, 260, 71]]
CORRUPTED = [[1, 19, 25, 33, 4], [1, 8, 5, 60, 71]]
EDGES = [
    "embed -> q.1.h2", "head_out.0.h1 -> k.2.h1", "mlp_out.0 -> v.3.h0", "head_out.0.h3 -> mlp_in.1",
    "mlp_out.1 -> mlp_in.3", "head_out.2.h0 -> logits",
]  # fmt: skip


def seven(logits: Tensor) -> Tensor:
    return logits[:, 7]


@cache
def wrapped(name: str) -> StandardizedTransformer:
    return StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False)


@pytest.mark.parametrize("family", ["llama", "qwen3", "cohere"])
def test_edges_against_plain_hooks(family: str) -> None:
    model = wrapped(family)
    twin = EdgeTwin(build(family), parallel=model.parallel)
    clean, corrupted = torch.tensor(CLEAN), torch.tensor(CORRUPTED)
    edges = [*EDGES, *([] if model.parallel else ["head_out.1.h2 -> mlp_in.1"])]
    exact = exact_edge_effects(model, CLEAN, CORRUPTED, edges, metric=seven)
    estimated = edge_attribution_patching(model, CLEAN, CORRUPTED, metric=seven)
    graph = ComputationGraph.of(model)
    whole, _ = twin.patched(edges[-1], clean, corrupted, seven, part=0.0)
    np.testing.assert_allclose(exact.clean, whole, rtol=1e-5)
    for edge in edges:
        place = np.argwhere(graph.mask([edge]))[0]
        effect = twin.patched(edge, clean, corrupted, seven)[0] - whole
        np.testing.assert_allclose(exact.score[(slice(None), *place)], effect, rtol=1e-4, atol=1e-5, err_msg=edge)
        slope = twin.patched(edge, clean, corrupted, seven, part=0.0)[1]
        np.testing.assert_allclose(estimated.score[(slice(None), *place)], slope, rtol=1e-4, atol=1e-6, err_msg=edge)
    assert int(np.isnan(exact.score[0]).sum()) == exact.score[0].size - len(edges)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "olmo2", "mixtral", "falcon", "opt"])
def test_edges_of_a_node_add_up_to_the_node_in_every_layout(family: str) -> None:
    """What is attributed to a node is shared out among its edges; a circuit of all edges is the model, of none the
    corrupted run."""
    model = wrapped(family)
    graph = ComputationGraph.of(model)
    none = np.zeros_like(graph.exists)
    values = run_circuits(model, CLEAN, CORRUPTED, [graph.exists, none], metric=seven)
    for direction in ("noising", "denoising"):
        scores = edge_attribution_patching(model, CLEAN, CORRUPTED, metric=seven, direction=direction)
        np.testing.assert_allclose(values, [scores.clean, scores.corrupted], rtol=1e-5, atol=1e-6)
        common = {"metric": seven, "direction": direction}
        heads = attribution_patching(model, CLEAN, CORRUPTED, "head_out", None, heads="all", **common).effect[..., 0]
        mlps = attribution_patching(model, CLEAN, CORRUPTED, "mlp_out", None, **common).effect[..., 0]
        first = attribution_patching(model, CLEAN, CORRUPTED, "resid_pre", None, layers=[0], **common).effect[..., 0]
        nodes = np.concatenate([heads, mlps[..., None]], axis=2).reshape(2, -1)
        expected = np.concatenate([first, nodes], axis=1)
        np.testing.assert_allclose(np.nansum(scores.score, axis=2), expected, rtol=1e-3, atol=1e-5)


def test_integrated_gradients_average_over_the_way_between_embeddings() -> None:
    model = wrapped("gpt2")
    scores = edge_attribution_patching(model, CLEAN, CORRUPTED, metric=seven, steps=40)
    # All that comes from the embeddings is the whole difference of the two runs.
    whole = np.nansum(scores.score[:, 0], axis=1)
    np.testing.assert_allclose(whole, scores.corrupted - scores.clean, rtol=1e-2, atol=1e-3)
    with pytest.raises(InterpError, match="steps: expected at least 1"):
        edge_attribution_patching(model, CLEAN, CORRUPTED, metric=seven, steps=0)


def test_pairs_of_several_lengths_and_batches_give_what_each_gives_alone() -> None:
    model = wrapped("llama")
    clean, corrupted = [*CLEAN, [1, 9, 40]], [*CORRUPTED, [1, 12, 41]]
    together = edge_attribution_patching(model, clean, corrupted, metric="kl", steps=2)
    for batch_size in (1, None):
        alone = edge_attribution_patching(model, clean, corrupted, metric="kl", steps=2, batch_size=batch_size)
        np.testing.assert_allclose(alone.score, together.score, rtol=1e-4, atol=1e-7)
    single = edge_attribution_patching(model, clean[2:], corrupted[2:], metric="kl", steps=2)
    np.testing.assert_allclose(single.score[0], together.score[2], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(together.clean, 0, atol=1e-6)


class _Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive at once, of those that are made while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        given = {value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in given:
                storage = value.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def test_memory_grows_by_a_few_residual_streams_a_layer_and_not_by_all_heads() -> None:
    heads, hidden, tokens = 16, 64, 128
    peaks = []
    for layers in (2, 6):
        plain = tiny_model(
            "llama", num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads,
            num_key_value_heads=heads, intermediate_size=32,
        )  # fmt: skip
        model = StandardizedTransformer(plain, tokenizer=tiny_tokenizer(), verify=False)
        prompts = torch.randint(3, 400, (2, 1, tokens), generator=torch.Generator().manual_seed(0)).tolist()
        edge_attribution_patching(model, *prompts, metric=seven, batch_size=1)  # trials are made once
        with _Peak() as made:
            edge_attribution_patching(model, *prompts, metric=seven, batch_size=1)
        peaks.append(made.peak)
    stream = tokens * hidden * 4  # bytes of one residual stream
    by_layer = (peaks[1] - peaks[0]) / 4
    assert peaks[0] > 2 * heads * stream  # at one layer, what all heads write and read is there
    assert by_layer < 8 * stream < heads * stream, by_layer / stream


def test_what_is_no_graph_of_edges_is_refused() -> None:
    for family, reason in (
        ("jamba", "token mixer that is not attention"),
        ("bloom_post_norm", "norms or scales the residual stream itself"),
        ("granitemoeshared", "in other ways than by queries, keys, values and mlp_in"),
        ("laguna", "expected 4 heads in z.1, found 2"),
        ("xglm", "cannot be run one by one"),
    ):
        model = StandardizedTransformer(build(family), tokenizer=tiny_tokenizer(), verify=False)
        with pytest.raises(InterpError, match=f"edges of .*{reason}.*Patch sites instead"):
            edge_attribution_patching(model, CLEAN, CORRUPTED, metric=seven)
    bloom = wrapped("bloom")  # its layers take as many rows as they were given: attribution, but no circuits
    scores = edge_attribution_patching(bloom, CLEAN, CORRUPTED, metric=seven)
    first = attribution_patching(
        bloom, CLEAN, CORRUPTED, "resid_pre", None, layers=[0], metric=seven, direction="noising"
    )
    np.testing.assert_allclose(np.nansum(scores.score[:, 0], axis=1), first.effect[:, 0, 0], rtol=1e-3, atol=1e-5)
    for family in ("bloom", "afmoe"):  # in Afmoe, a gate reads the residual stream beside queries, keys and values
        with pytest.raises(InterpError, match="nodes cannot be run one by one"):
            run_circuits(wrapped(family), CLEAN, CORRUPTED, [[]], metric=seven)


def test_bad_pairs_and_arguments_are_refused() -> None:
    model = wrapped("gpt2")
    for change, message in (
        ({"corrupted": CORRUPTED[:1]}, "expected pairs, got 2 clean and 1 corrupted prompts"),
        ({"corrupted": [CORRUPTED[0], [1, 2]]}, "pair 1: the clean prompt has 5 tokens, the corrupted one 2"),
        ({"direction": "noise"}, "direction: unknown 'noise'"),
        ({"metric": [seven, "kl"]}, "metric: expected one"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
    ):
        given = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": seven, **change}
        with pytest.raises(InterpError, match=message):
            edge_attribution_patching(model, **given)
    graph = ComputationGraph.of(model)
    assert graph.edges(graph.mask(["embed->q.0.h1"])) == ["embed -> q.0.h1"]
    for edge, message in (
        ("embed", "expected sender -> receiver"),
        ("embed -> q.9.h1", "no node 'q.9.h1' in this model"),
        ("mlp_out.2 -> q.1.h0", "q.1.h0 is read before mlp_out.2 is written"),
    ):
        with pytest.raises(InterpError, match=message):
            run_circuits(model, CLEAN, CORRUPTED, [[edge]], metric=seven)
    with pytest.raises(InterpError, match="expected a bool mask"):
        run_circuits(model, CLEAN, CORRUPTED, [np.zeros((2, 2), dtype=bool)], metric=seven)

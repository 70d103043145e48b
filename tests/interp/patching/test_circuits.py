"""Circuits run exactly, against GPT-2 written out node by node; and found ones, on a model whose circuit is known."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp import StandardizedTransformer
from interp.errors import InterpError
from interp.patching import (
    ComputationGraph,
    activation_patching,
    against_exact,
    attribution_patching,
    choose_edges,
    edge_attribution_patching,
    exact_edge_effects,
    faithfulness,
    run_circuits,
)
from interp.results import EdgeScores, area_under_roc
from pipeline.demo.known_circuit import FOLDER, circuit_pairs, known_circuit
from tests.tiny import tiny_model, tiny_tokenizer

CLEAN = [[1, 17, 250, 33, 94], [1, 88, 5, 260, 71]]
CORRUPTED = [[1, 19, 25, 33, 4], [1, 8, 5, 60, 71]]


def seven(logits: Tensor) -> Tensor:
    return logits[:, 7]


def node_by_node(plain: Any, ids: Tensor, graph: ComputationGraph, theirs: list[Tensor], mask: NDArray) -> Any:
    """GPT-2, each node reading what others write, or in the corrupted run wrote where the edge is not in the circuit.

    Returns:
        What every sender writes, in order; and (row, vocabulary).
    """
    body, heads = plain.transformer, graph.num_heads
    size = plain.config.n_embd // heads
    positions = torch.arange(ids.shape[1])
    written = [body.wte(ids) + body.wpe(positions)]

    def read(receiver: str, biases: Tensor) -> Tensor:
        column = mask[:, graph.receivers.index(receiver)]
        each = [own if column[index] or not theirs else theirs[index] for index, own in enumerate(written)]
        return torch.stack(each).sum(0) + biases

    biases = torch.zeros(plain.config.n_embd)  # of attention's projections, which no node is
    hidden = positions[:, None] < positions
    for layer, block in enumerate(body.h):
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        found = []
        for head in range(heads):
            parts = []
            for index, part in enumerate("qkv"):
                start = index * plain.config.n_embd + head * size
                own = slice(start, start + size)
                normed = block.ln_1(read(f"{part}.{layer}.h{head}", biases))
                parts.append(normed @ weight[:, own] + bias[own])
            scores = parts[0] @ parts[1].transpose(1, 2) / math.sqrt(size)
            z = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ parts[2]
            found.append(z @ block.attn.c_proj.weight[head * size : (head + 1) * size])
        written += found
        biases = biases + block.attn.c_proj.bias
        written.append(block.mlp(block.ln_2(read(f"mlp_in.{layer}", biases))))
    return written, plain.lm_head(body.ln_f(read("logits", biases)))[:, -1]


@torch.no_grad()
def test_circuits_against_a_model_written_out_node_by_node() -> None:
    plain = tiny_model("gpt2")
    model = StandardizedTransformer(tiny_model("gpt2"), tokenizer=tiny_tokenizer(), verify=False)
    graph = ComputationGraph.of(model)
    clean, corrupted = torch.tensor(CLEAN), torch.tensor(CORRUPTED)
    theirs, _ = node_by_node(plain, corrupted, graph, [], graph.exists)
    draw = np.random.default_rng(0)
    masks = [graph.exists & (draw.random(graph.exists.shape) < share) for share in (0.2, 0.5, 0.9)]
    masks.append(graph.mask_of_nodes(["embed", "head_out.0.h1", "head_out.2.h3", "mlp_out.1"]))
    values = run_circuits(model, CLEAN, CORRUPTED, masks, metric=seven)
    for mask, value in zip(masks, values, strict=True):
        _, logits = node_by_node(plain, clean, graph, theirs, mask)
        np.testing.assert_allclose(value, seven(logits), rtol=1e-4, atol=1e-5)
    assert np.ptp(values, axis=0).min() > 1e-3  # they differ


def test_the_graph_names_what_there_is() -> None:
    graph = ComputationGraph(num_layers=3, num_heads=4, num_kv_heads=2, parallel=False)
    assert graph.senders[:6] == ("embed", *(f"head_out.0.h{head}" for head in range(4)), "mlp_out.0")
    assert graph.receivers[graph.attention_inputs(1)] == (
        "q.1.h0", "q.1.h1", "q.1.h2", "q.1.h3", "k.1.h0", "k.1.h1", "v.1.h0", "v.1.h1",
    )  # fmt: skip
    assert graph.receivers[graph.mlp_input(2)] == "mlp_in.2" and graph.senders[graph.mlp(2)] == "mlp_out.2"
    assert [graph.receivers[place] for place in graph.inputs_of(graph.senders.index("head_out.1.h3"))] == [
        "q.1.h3", "k.1.h1", "v.1.h1",
    ]  # fmt: skip
    # Each layer's attention has 8 inputs, its MLP one, which reads the heads of the layer too.
    assert graph.num_edges == sum(8 * (1 + 5 * layer) + 5 + 5 * layer for layer in range(3)) + 16
    assert len(graph.edges()) == graph.num_edges
    assert graph.mask(graph.edges()).sum() == graph.num_edges
    parallel = ComputationGraph(num_layers=3, num_heads=4, num_kv_heads=2, parallel=True)
    assert graph.num_edges - parallel.num_edges == 3 * 4
    kept = graph.edges(graph.mask_of_nodes(["embed", "mlp_out.1", "logits"]))
    assert kept == ["embed -> mlp_in.1", "embed -> logits", "mlp_out.1 -> logits"]


def test_edges_are_chosen_by_score_or_from_the_logits_backwards() -> None:
    graph = ComputationGraph(num_layers=2, num_heads=2, num_kv_heads=2, parallel=False)
    scores = np.zeros(graph.exists.shape)
    for edge, score in {
        "embed -> v.0.h0": 9.0, "embed -> v.0.h1": -8.0, "head_out.0.h1 -> mlp_in.1": 2.0, "mlp_out.1 -> logits": 1.0,
    }.items():  # fmt: skip
        scores[graph.mask([edge])] = score
    top = [graph.edges(choose_edges(graph, scores, count)) for count in (1, 2)]
    assert top == [["embed -> v.0.h0"], ["embed -> v.0.h0", "embed -> v.0.h1"]]
    signed = graph.edges(choose_edges(graph, scores, 2, absolute=False))
    assert signed == ["embed -> v.0.h0", "head_out.0.h1 -> mlp_in.1"]
    greedy = graph.edges(choose_edges(graph, scores, 3, selection="greedy"))
    assert greedy == ["embed -> v.0.h1", "head_out.0.h1 -> mlp_in.1", "mlp_out.1 -> logits"]
    for count in (0, graph.num_edges):
        assert choose_edges(graph, scores, count, selection="greedy").sum() == count


# The known circuit ----------------------------------------------------------------------------------------------------


@cache
def known() -> tuple[StandardizedTransformer, dict[str, Any]]:
    """The model, and pairs with their answers."""
    pairs = circuit_pairs(16, seed=3)
    answers = list(zip(pairs.clean_answers, pairs.corrupted_answers, strict=True))
    model = StandardizedTransformer(FOLDER)
    return model, {"clean": list(pairs.clean), "corrupted": list(pairs.corrupted), "answers": answers}


def effects_by_node(patch: Any, **more: Any) -> dict[str, float]:
    """Node -> the size of its mean effect, by a way to patch sites."""
    model, given = known()
    whole = {**given, "positions": None, "direction": "noising", **more}
    heads = np.abs(patch(model, sites="head_out", heads="all", **whole).effect.mean(axis=0)[..., 0])
    mlps = np.abs(patch(model, sites="mlp_out", **whole).effect.mean(axis=0)[..., 0])
    found = {"embed": float(np.abs(patch(model, sites="resid_pre", layers=[0], **whole).effect.mean()))}
    for layer in range(model.num_layers):
        found |= {f"head_out.{layer}.h{head}": float(heads[layer, head]) for head in range(model.num_heads)}
        found[f"mlp_out.{layer}"] = float(mlps[layer])
    return found


@pytest.mark.parametrize("patch", [activation_patching, attribution_patching])
def test_the_known_circuit_s_nodes_are_found(patch: Any) -> None:
    steps = {} if patch is activation_patching else {"steps": 5}
    effects = effects_by_node(patch, **steps)
    truth = np.array([node in known_circuit()["nodes"] for node in effects])
    assert area_under_roc(np.array([*effects.values()]), truth) >= 0.99
    inside = [effect for effect, is_true in zip(effects.values(), truth, strict=True) if is_true]
    outside = [effect for effect, is_true in zip(effects.values(), truth, strict=True) if not is_true]
    assert min(inside) > 10 * max(outside) > 0  # others do something, and little


def test_the_known_circuit_s_edges_are_found() -> None:
    model, given = known()
    edges = known_circuit()["edges"]
    exact = exact_edge_effects(model, **given)
    assert exact.auroc(edges) >= 0.99
    assert set(exact.to_frame()["edge"][: len(edges)]) == set(edges)
    at_clean, integrated = (edge_attribution_patching(model, **given, steps=steps) for steps in (None, 5))
    assert integrated.auroc(edges) >= 0.95
    # At the clean prompt attention is saturated, so that queries and keys have next to no gradient.
    saturated = ComputationGraph.of(model).mask([edge for edge in edges if "q." in edge or "k." in edge])
    assert np.abs(at_clean.mean[saturated]).max() < 0.01 * np.abs(exact.mean[saturated]).min()
    assert np.abs(integrated.mean[saturated]).min() > 0.2 * np.abs(exact.mean[saturated]).max()
    assert at_clean.auroc(edges) < 0.99 < integrated.auroc(edges)
    whole = [faithfulness(model, scores=one, **given) for one in (at_clean, integrated, exact)]
    assert whole[0].cpr < whole[1].cpr - 0.02 and whole[0].cmd > whole[1].cmd + 0.02
    assert whole[1].cpr == pytest.approx(whole[2].cpr, abs=0.01)


def test_the_known_circuit_is_faithful() -> None:
    model, given = known()
    truth = known_circuit()
    graph = ComputationGraph.of(model)
    without = [edge for edge in truth["edges"] if edge != "head_out.0.h1 -> k.1.h1"]
    circuits = [
        truth["edges"],
        graph.mask_of_nodes(truth["nodes"]),
        without,
        graph.exists & ~graph.mask(truth["edges"]),
    ]
    right, nodes, less, others = run_circuits(model, circuits=circuits, **given).mean(axis=1)
    perfect = faithfulness(model, scores=dict.fromkeys(truth["edges"], 1.0), **given)
    clean, corrupted = perfect.clean.mean(), perfect.corrupted.mean()
    assert (right - corrupted) / (clean - corrupted) == pytest.approx(1, abs=0.01)
    assert (nodes - corrupted) / (clean - corrupted) == pytest.approx(1, abs=0.01)
    assert (less - corrupted) / (clean - corrupted) < 0.9
    assert (others - corrupted) / (clean - corrupted) == pytest.approx(0, abs=0.01)
    # Ten edges are 3.8 % of all: below that no circuit is whole, above it the true one is the model.
    assert perfect.edges.tolist() == [0, 0, 1, 2, 5, 13, 26, 52, 131, 262]
    np.testing.assert_allclose(perfect.faithfulness[5:], 1, atol=0.01)
    assert perfect.cpr == pytest.approx(0.999, abs=0.04) and perfect.cmd == pytest.approx(0, abs=0.04)
    large = faithfulness(model, scores=dict.fromkeys(truth["edges"], 1.0), proportions=(0.05, 0.5, 1), **given)
    assert large.cpr == pytest.approx(0.95, abs=0.005) and large.cmd < 0.005
    found = faithfulness(model, scores=edge_attribution_patching(model, **given, steps=5), selection="greedy", **given)
    assert found.cpr == pytest.approx(perfect.cpr, abs=0.02)
    wrong = faithfulness(model, scores={edge: 1.0 for edge in graph.edges() if edge not in truth["edges"]}, **given)
    assert wrong.cpr < 0.35 and wrong.cmd > 0.6
    nodes_found = edge_attribution_patching(model, **given, steps=5).node_scores
    by_node = faithfulness(model, scores=nodes_found, proportions=(0.1, 0.35, 1), **given)
    np.testing.assert_allclose(by_node.faithfulness, [0, 1, 1], atol=0.01)


def test_what_faithfulness_refuses() -> None:
    model, given = known()
    for scores, more, message in (
        ({"head_out.9.h0": 1.0}, {}, "no node 'head_out.9.h0'"),
        ({"embed -> k.9.h0": 1.0}, {}, "no node 'k.9.h0'"),
        ({"embed": 1.0}, {"selection": "greedy"}, "the scores are of nodes"),
        ({"embed": 1.0}, {"selection": "best"}, "selection: unknown 'best'"),
        ({"embed": 1.0}, {"proportions": (0.5, 0.1)}, "proportions: expected shares from 0 to 1, ascending"),
        ({"embed": 1.0}, {"proportions": (0.5, 1.5)}, "proportions: expected shares from 0 to 1, ascending"),
        (
            EdgeScores({"example": [0], "sender": ["a"], "receiver": ["b"]}, [[[1.0]]], [0.0], [1.0]),
            {},
            "of all edges",
        ),
    ):
        with pytest.raises(InterpError, match=message):
            faithfulness(model, scores=scores, **given, **more)


def test_an_estimate_stands_beside_what_patching_has() -> None:
    model, given = known()
    grid = {"sites": "head_out", "heads": "all", "positions": "last"}
    exact = activation_patching(model, **given, **grid)
    estimate = attribution_patching(model, **given, **grid, steps=5)
    table = against_exact(estimate, exact)
    assert list(table.columns) == ["layer", "position", "head", "metric", "estimated", "exact", "error"]
    assert len(table) == 12
    np.testing.assert_allclose(table["estimated"], estimate.effect.mean(axis=0).ravel(), rtol=1e-4, atol=1e-5)
    assert float(table[["estimated", "exact"]].corr().iloc[0, 1]) > 0.99
    with pytest.raises(InterpError, match="expected the same grid"):
        against_exact(estimate, activation_patching(model, **given, sites="z", positions="last"))

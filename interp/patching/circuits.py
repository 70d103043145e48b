"""Circuits: run the edges of a circuit clean and all others corrupted, exactly; how faithful circuits are by size.

A circuit says that some edges do the work. Its test is to take all others away: each of them carries what it carries in
the corrupted prompt, and the metric should stay as it is. A node of such a run reads its own mixture of clean and
corrupted values, queries, keys and values of one head each another one, and what it then writes goes on to those that
read it over an edge of the circuit.

Pitfalls. Faithfulness depends on the corrupted prompts: what they share with the clean ones, the circuit has for free
(Miller, Chughtai & Saunders 2024). A faithful circuit need not be complete, and one above 1 does more than the model.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.errors import InterpError, nearest
from interp.model.resolve import head_out_place
from interp.model.verdicts import Pair, sample_ids, verdict
from interp.passes import in_turn
from interp.patching.cells import values_at
from interp.patching.computation_graph import ComputationGraph
from interp.patching.edges import PromptPairs
from interp.patching.effects import Answers, Metric
from interp.patching.node_outputs import NodeOutputs, check_heads, run_layer
from interp.patching.patched_runs import CleanRun
from interp.results import Coordinate, EdgeScores, FaithfulnessCurve

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["PROPORTIONS", "Circuit", "Selection", "choose_edges", "exact_edge_effects", "faithfulness", "run_circuits"]

PROPORTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of edges in the circuits of the Mechanistic Interpretability Benchmark."""
Selection = Literal["top", "greedy"]
Circuit = Collection[str] | NDArray[np.bool_]
"""Edges by name, `sender -> receiver`; or a mask (sender, receiver)."""


@in_turn
def run_circuits(
    model: StandardizedTransformer,
    clean: Any,
    corrupted: Any,
    circuits: Sequence[Circuit],
    *,
    images: Any = None,
    corrupted_images: Any = None,
    metric: Metric = "logit_difference",
    answers: Answers | None = None,
    batch_size: int | None = None,
) -> NDArray[np.float32]:
    """Run clean prompts through circuits, everything outside of them corrupted.

    Arguments:
        model: the model.
        clean, corrupted: as many prompts, two and two of the same number of tokens.
        circuits: each the edges that it has; for one of nodes, `ComputationGraph.mask_of_nodes`.
        images, corrupted_images, metric, answers, batch_size: as of `edge_attribution_patching`.

    Returns:
        (circuit, example), the metric.

    Raises:
        InterpError: an edge that the model does not have; and as `edge_attribution_patching`.
    """
    pairs = PromptPairs.of(model, clean, corrupted, metric, answers, images, corrupted_images)
    return _run(pairs, [_mask(pairs.graph, circuit) for circuit in circuits], batch_size)[0]


@in_turn
def faithfulness(
    model: StandardizedTransformer,
    clean: Any,
    corrupted: Any,
    scores: EdgeScores | Mapping[str, float],
    *,
    images: Any = None,
    corrupted_images: Any = None,
    metric: Metric = "logit_difference",
    answers: Answers | None = None,
    proportions: Sequence[float] = PROPORTIONS,
    selection: Selection = "top",
    absolute: bool = True,
    batch_size: int | None = None,
) -> FaithfulnessCurve:
    """Run circuits of growing size, the edges (or nodes) with the highest scores, with everything else corrupted.

    As the Mechanistic Interpretability Benchmark defines it: a circuit of proportion p has int(p x all) edges; see
    `FaithfulnessCurve` for CPR and CMD.

    Arguments:
        model: the model.
        clean, corrupted: as many prompts, two and two of the same number of tokens; not those that scores are from.
        scores: of edges; or name -> score of edges, or of nodes (`embed`, `head_out.0.h1`, `mlp_out.3`), in which case
            circuits are made of nodes with all edges between them. What has no score has the score 0.
        images, corrupted_images, metric, answers, batch_size: as of `edge_attribution_patching`.
        proportions: shares of all edges (nodes), ascending, up to 1.
        selection: `top`: the highest scores; `greedy`: from the logits backwards, always the highest-scored edge into
            what is in the circuit already, so that every edge leads to the logits.
        absolute: a negative score counts as its size.

    Raises:
        InterpError: a name that is none, proportions out of range; and as `edge_attribution_patching`.

    Mueller et al. (2025), arXiv 2504.13151.
    """
    if selection not in get_args(Selection):
        raise InterpError(f"selection: unknown {selection!r}.{nearest(str(selection), get_args(Selection))}")
    proportions = [float(share) for share in proportions]
    if not proportions or sorted(set(proportions)) != proportions or not 0 <= proportions[0] <= proportions[-1] <= 1:
        raise InterpError(f"proportions: expected shares from 0 to 1, ascending, got {proportions}.")
    pairs = PromptPairs.of(model, clean, corrupted, metric, answers, images, corrupted_images)
    graph = pairs.graph
    masks = list(_circuits(graph, scores, proportions, selection, absolute))
    values, (of_clean, of_corrupted) = _run(pairs, masks, batch_size)
    coordinates: dict[str, Sequence[Coordinate]] = {
        "example": range(len(pairs)),
        "proportion": [f"{share:g}" for share in proportions],
    }
    counts = np.array([mask.sum() for mask in masks], dtype=np.int32)
    return FaithfulnessCurve(coordinates, values.T, of_clean, of_corrupted, counts, metric=pairs.metrics.names[0])


def _circuits(
    graph: ComputationGraph,
    scores: EdgeScores | Mapping[str, float],
    proportions: Sequence[float],
    selection: Selection,
    absolute: bool,
) -> Iterator[NDArray[np.bool_]]:
    if isinstance(scores, Mapping) and scores and all("->" not in name for name in scores):
        if selection == "greedy":
            raise InterpError("selection: 'greedy' goes along edges, and the scores are of nodes. Use 'top'.")
        graph.mask_of_nodes(scores)  # refuses what is no node
        by_node = np.array([float(scores.get(node, 0.0)) for node in graph.senders])
        order = np.argsort(-(np.abs(by_node) if absolute else by_node), kind="stable")
        for share in proportions:
            yield graph.mask_of_nodes(graph.senders[node] for node in order[: int(share * len(order))])
        return
    if isinstance(scores, Mapping):
        by_edge = np.zeros(graph.exists.shape)
        for edge, score in scores.items():
            by_edge[graph.mask([edge])] = score
    else:
        if scores.along("sender") != graph.senders or scores.along("receiver") != graph.receivers:
            raise InterpError("scores: expected those of all edges of this model, got others.")
        by_edge = np.nan_to_num(scores.mean)
    for share in proportions:
        yield choose_edges(graph, by_edge, int(share * graph.num_edges), selection=selection, absolute=absolute)


def choose_edges(
    graph: ComputationGraph,
    scores: NDArray,
    count: int,
    *,
    selection: Selection = "top",
    absolute: bool = True,
) -> NDArray[np.bool_]:
    """The mask (sender, receiver) of a circuit of `count` edges; arguments as of `faithfulness`.

    Arguments:
        graph: nodes and edges.
        scores: (sender, receiver).
        count: how many edges.
    """
    weights = np.where(graph.exists, np.abs(scores) if absolute else scores, -np.inf)
    mask = np.zeros_like(graph.exists)
    if selection == "top":
        mask.flat[np.argsort(-weights, axis=None, kind="stable")[:count]] = True
        return mask & graph.exists
    waiting: list[tuple[float, int, int]] = []
    reached: set[int] = set()

    def reach(receivers: Collection[int]) -> None:
        for receiver in set(receivers) - reached:
            reached.add(receiver)
            for sender in np.flatnonzero(graph.exists[:, receiver]):
                heapq.heappush(waiting, (-float(weights[sender, receiver]), int(sender), receiver))

    reach([len(graph.receivers) - 1])
    while waiting and int(mask.sum()) < count:
        _, sender, receiver = heapq.heappop(waiting)
        mask[sender, receiver] = True
        reach(graph.inputs_of(sender))
    return mask


@in_turn
def exact_edge_effects(
    model: StandardizedTransformer,
    clean: Any,
    corrupted: Any,
    edges: Collection[str] | None = None,
    *,
    images: Any = None,
    corrupted_images: Any = None,
    metric: Metric = "logit_difference",
    answers: Answers | None = None,
    batch_size: int | None = None,
) -> EdgeScores:
    """Patch edges one by one, corrupted values into the clean run: what `edge_attribution_patching` estimates.

    Arguments:
        model: the model.
        clean, corrupted: as many prompts, two and two of the same number of tokens.
        edges: which; None: all, a run of every prompt for each.
        images, corrupted_images, metric, answers, batch_size: as of `edge_attribution_patching`.

    Returns:
        patched - unpatched for each example and edge; NaN for edges that were not asked for.

    Raises:
        InterpError: an edge that the model does not have; and as `edge_attribution_patching`.
    """
    pairs = PromptPairs.of(model, clean, corrupted, metric, answers, images, corrupted_images)
    graph = pairs.graph
    chosen = np.argwhere(graph.exists if edges is None else graph.mask(edges))
    masks = [graph.exists.copy() for _ in chosen]
    for mask, edge in zip(masks, chosen, strict=True):
        mask[tuple(edge)] = False
    values, ends = _run(pairs, masks, batch_size)
    score = np.full((len(pairs), *graph.exists.shape), np.nan, dtype=np.float32)
    score[:, *chosen.T] = (values - ends[0]).T
    return pairs.scores(score, ends, "noising")


def _mask(graph: ComputationGraph, circuit: Circuit) -> NDArray[np.bool_]:
    if not isinstance(circuit, np.ndarray):
        return graph.mask(circuit)
    if circuit.shape != graph.exists.shape or circuit.dtype != bool:
        raise InterpError(
            f"circuits: expected a bool mask (sender, receiver) = {graph.exists.shape}, got {circuit.dtype} "
            f"{circuit.shape}."
        )
    return circuit & graph.exists


def _run(
    pairs: PromptPairs, masks: Sequence[NDArray[np.bool_]], batch_size: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(circuit, example) of the metric; and (2, example) of clean and corrupted prompts as they are."""
    _check_exact(pairs)
    values = np.empty((len(masks), len(pairs)), dtype=np.float32)
    ends = np.empty((2, len(pairs)), dtype=np.float32)
    with torch.no_grad():
        for rows, ids, media in pairs.batches(batch_size):
            given = CleanRun.of(pairs.model, ids[0], 0, media[0])
            outputs = [NodeOutputs.of(pairs.model, one, own) for one, own in zip(ids, media, strict=True)]
            of_clean = outputs[0].final
            if any(own for both in media for own in both):
                found = _CircuitRuns(pairs.model, pairs.graph, given, outputs[1], _ends_of(pairs.graph)).final()
                pairs.check_seen(rows, found, torch.stack([one.final for one in outputs]))
            for index, one in enumerate(outputs):
                ends[index, rows] = pairs.measure(one.final, rows, of_clean).float().cpu()
            size = pairs.how_many_circuits(ids[0])
            for start in range(0, len(masks), size):
                some = masks[start : start + size]
                final = _CircuitRuns(
                    pairs.model, pairs.graph, given, outputs[1], some
                ).final()  # (circuit, row, hidden)
                found = pairs.measure(final.flatten(0, 1), rows * len(some), of_clean.repeat(len(some), 1))
                values[start : start + size, rows] = found.unflatten(0, (len(some), -1)).float().cpu()
    return values, ends


def _check_exact(pairs: PromptPairs) -> None:
    """Refuse a model of which a circuit of all edges is not the model, or one without the embedding's not the corrupted
    run: there every node reads corrupted embeddings, and writes what follows from them.

    Raises:
        InterpError: it is not; tried once on a small case.
    """
    model, graph = pairs.model, pairs.graph

    def trial(length: int) -> list[Pair]:
        clean = sample_ids(model, length=length)
        corrupted = clean.flip(0)

        @torch.no_grad()
        def as_circuits() -> Tensor:
            outputs = NodeOutputs.of(model, corrupted)
            return _CircuitRuns(model, graph, CleanRun.of(model, clean, 0), outputs, _ends_of(graph)).final()

        @torch.no_grad()
        def as_they_are() -> Tensor:
            return torch.stack([values_at(model, ids.tolist(), [])[1] for ids in (clean, corrupted)])

        return [(as_circuits, as_they_are)]

    longest = max(map(len, pairs.clean))
    if not verdict(model, "circuits", trial, "circuits are refused: running nodes one by one", longest=longest):
        raise InterpError(
            f"circuits of {type(model._module).__name__}: its nodes cannot be run one by one (hooks or edits of yours, "
            "layers that hand things to each other or hold a row for each of the batch, a gate that reads the residual "
            "stream too). Patch sites instead."
        )


def _ends_of(graph: ComputationGraph) -> list[NDArray[np.bool_]]:
    """The circuit of all edges, which is the clean run, and the one without the embedding's, the corrupted run."""
    without = graph.exists.copy()
    without[0] = False
    return [graph.exists, without]


class _CircuitRuns:
    """Circuits on some pairs, side by side, layer by layer.

    Arguments:
        model, graph: the model, and its nodes and edges.
        given: the clean prompts, how their layers are called.
        corrupted: what nodes write in the corrupted ones.
        masks: each (sender, receiver), a circuit.
    """

    def __init__(
        self,
        model: StandardizedTransformer,
        graph: ComputationGraph,
        given: CleanRun,
        corrupted: NodeOutputs,
        masks: Sequence[NDArray[np.bool_]],
    ) -> None:
        self.model, self.graph, self.given, self.corrupted = model, graph, given, corrupted
        embed = given.calls[0].input
        self.stream = embed.expand(len(masks), *embed.shape)  # what nodes wrote in each run, all together
        self.outside = torch.from_numpy(~np.stack(masks) & self.graph.exists)  # (circuit, sender, receiver)
        # Of every sender so far: what it writes in the corrupted run more than in this one.
        self.differences = [(corrupted.embed - self.stream)[..., None, :]]  # (circuit, row, position, sender, hidden)

    def final(self) -> Tensor:
        """(circuit, row, hidden), what the final norm reads at the last token."""
        for layer in range(self.graph.num_layers):
            self._through(layer)
        return self._reads(self.stream, -1, self.differences)[:, :, -1]

    def _reads(self, stream: Tensor, receiver: int, differences: Sequence[Tensor]) -> Tensor:
        """(circuit, row, position, hidden), what one input reads: edges outside the circuit bring corrupted values."""
        whole = torch.cat(list(differences), dim=3)
        outside = self.outside[:, : whole.shape[3], receiver].to(whole.device, whole.dtype)
        return stream + torch.einsum("crpsh,cs->crph", whole, outside)

    def _through(self, layer: int) -> None:
        graph, stream = self.graph, self.stream
        circuits, rows = stream.shape[:2]
        together = circuits * rows
        parts = self._attention_parts(layer)
        place = head_out_place(self.model, layer, f"head_out.{layer}")
        theirs = place.heads(self.corrupted.z[layer])
        seen: dict[str, Tensor] = {}

        def write(kind: str, live: Tensor) -> Tensor:
            return torch.cat([parts[kind].to(live), live[together:]])

        def heads(z: Tensor) -> None:
            seen["heads"] = theirs - place.heads(z[:together]).unflatten(0, (circuits, rows))

        def added(value: Tensor) -> None:
            seen["attn"] = value[:together].unflatten(0, (circuits, rows)).clone()

        def middle(live: Tensor) -> Tensor:
            read = [*self.differences, seen["heads"]]
            return self._reads(live.unflatten(0, (circuits, rows)), graph.mlp_input(layer), read).flatten(0, 1)

        def end(value: Tensor) -> None:
            seen["mlp"] = value[-together:].unflatten(0, (circuits, rows)).clone()

        calls: dict[str, Any] = {kind: (lambda live, kind=kind: write(kind, live)) for kind in "qkv"}
        calls |= {"z": heads, "attn_out": added}
        entering = stream.flatten(0, 1)
        if graph.parallel:  # rows of their own for the MLP, which reads the stream before the layer
            read = self._reads(stream, graph.mlp_input(layer), self.differences)
            entering = torch.cat([entering, read.flatten(0, 1)])
        else:
            calls["resid_mid"] = middle
        run_layer(self.given, layer, entering, {**calls, "mlp_out": end})
        self.differences += [seen["heads"], (self.corrupted.mlps[layer] - seen["mlp"])[..., None, :]]
        self.stream = stream + seen["attn"] + seen["mlp"]

    def _attention_parts(self, layer: int) -> dict[str, Tensor]:
        """Queries, keys and values of a layer, each head's from what it reads itself."""
        graph = self.graph
        whole = torch.cat(self.differences, dim=3)
        outside = self.outside[:, : whole.shape[3], graph.attention_inputs(layer)]
        reads, places, start = [], [], 0
        for stream, differences, own in zip(self.stream, whole, outside, strict=True):
            columns, which = torch.unique(own, dim=1, return_inverse=True)  # inputs that read the same, once
            weights = columns.to(differences.device, differences.dtype)
            reads.append(stream + torch.einsum("rpsh,sd->drph", differences, weights))
            places.append((which + start).tolist())
            start += columns.shape[1]
        found: dict[str, Tensor] = {}

        def keep(kind: str, value: Tensor) -> None:
            found[kind] = value.unflatten(0, (start, -1)).clone()  # (input, row, head, position, head_dim)

        keeping: dict[str, Any] = {kind: (lambda value, kind=kind: keep(kind, value)) for kind in "qkv"}
        run_layer(self.given, layer, torch.cat(reads).flatten(0, 1), keeping)
        parts, first = {}, 0
        for kind, count in graph.read_by_attention:
            check_heads(self.model, kind, layer, found[kind].shape[2], count)
            by_circuit = [
                torch.stack([found[kind][inputs[first + head], :, head] for head in range(count)], dim=1)
                for inputs in places
            ]
            parts[kind] = torch.cat(by_circuit)  # (circuit and row, head, position, head_dim)
            first += count
        return parts

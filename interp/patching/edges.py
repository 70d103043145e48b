"""Edge attribution patching: what a patch of each edge would do to the metric, to first order, for all edges at once.

Patching one edge, from what one node writes to what another reads, needs a forward pass of its own, and a model has
tens of thousands of edges. To first order its effect is the difference of what is written in the two runs, times the
gradient of the metric at what is read (Syed et al. 2023). Gradients at one end of the path mislead where attention is
saturated: with `steps`, they are averaged along the straight line from one run's embeddings to the other's (Hanna et
al. 2024).

Pitfalls. A score is not an effect: check what matters by patching it (`exact_edge_effects`, `faithfulness`). Scores of
two edges do not add up to what both do. What clean and corrupted prompts have in common has no score at all.

Memory. Of all layers together three tensors of the size of the residual stream are held (four while the two runs are
compared): the stream before each layer, and the differences of what its heads (before their projection) and its MLP
wrote. Gradients, and what heads wrote into the stream, heads x hidden numbers a token, are there for one layer at a
time: each layer is run again when the gradient comes to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.batching import batches_alike, how_many
from interp.errors import InterpError, nearest
from interp.forward import check_ready
from interp.model.verdicts import Pair, off_by, sample_ids, verdict
from interp.passes import check_gradients, in_turn
from interp.patching.activation_patching import Pairs
from interp.patching.attribution_patching import check_slope
from interp.patching.cells import values_at
from interp.patching.computation_graph import ComputationGraph
from interp.patching.effects import Answers, Metric, Metrics
from interp.patching.node_outputs import LayerGradients, NodeOutputs, OutputDifferences, run_layer
from interp.patching.patched_runs import CleanRun
from interp.prompts import Media
from interp.results import Coordinate, Direction, EdgeScores

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["PromptPairs", "edge_attribution_patching"]


@dataclass(frozen=True)
class PromptPairs:
    """Clean and corrupted prompts, two and two of one length, and a metric of them.

    Arguments:
        model: the model.
        graph: its nodes and edges.
        clean, corrupted: token ids of each prompt.
        media: what each clean and each corrupted prompt is fed beside them.
        metrics: one metric.
    """

    model: StandardizedTransformer
    graph: ComputationGraph
    clean: list[list[int]]
    corrupted: list[list[int]]
    media: tuple[list[Media | None], list[Media | None]]
    metrics: Metrics

    @classmethod
    def of(
        cls,
        model: StandardizedTransformer,
        clean: Any,
        corrupted: Any,
        metric: Metric,
        answers: Answers | None,
        images: Any = None,
        corrupted_images: Any = None,
    ) -> PromptPairs:
        """The same, checked; arguments as of `edge_attribution_patching`."""
        check_ready(model)
        graph = ComputationGraph.of(model)
        pairs = Pairs.of(model, clean, corrupted, images, corrupted_images)
        ids = [[one.input_ids for one in prompts] for prompts in (pairs.clean, pairs.corrupted)]
        media = [one.media for one in pairs.clean], [one.media for one in pairs.corrupted]
        lengths = [[len(one) for one in prompts] for prompts in ids]
        for example, (one, other) in enumerate(zip(*lengths, strict=True)):
            if one != other:
                raise InterpError(
                    f"pair {example}: the clean prompt has {one} tokens, the corrupted one {other}. Edges are summed "
                    "over positions, so both need as many."
                )
        metrics = Metrics.of(model, metric, answers, len(ids[0]))
        if len(metrics.names) != 1:
            raise InterpError(f"metric: expected one, got {', '.join(metrics.names)}.")
        consequence = "edges are refused: running its layers one by one"
        if not verdict(
            model, "layers alone", lambda length: _trial(model, length), consequence, longest=max(lengths[0])
        ):
            raise InterpError(
                f"edges of {type(model._module).__name__}: its layers cannot be run one by one (hooks or edits of "
                "yours, or layers that hand things to each other), which edges need. Patch sites instead."
            )
        return cls(model, graph, ids[0], ids[1], media, metrics)

    def __len__(self) -> int:
        return len(self.clean)

    def batches(self, batch_size: int | None) -> Iterator[tuple[list[int], list[Tensor], list[list[Media | None]]]]:
        """Pairs of one length: their numbers, and of clean and corrupted prompts (row, position) token ids and media.

        A pair with images goes alone: its layers may be given positions and masks of its own.

        Arguments:
            batch_size: pairs in a batch at most; None: as many as suit the device.
        """
        if batch_size is not None and batch_size < 1:
            raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
        if batch_size is None:
            batch_size = self._how_many(self.graph.attention_inputs(0).stop + self.graph.num_heads, self._longest)
        alone = [pair if any(own) else -1 for pair, own in enumerate(zip(*self.media, strict=True))]
        for rows in batches_alike(self.clean, alone, batch_size, 1):
            both = [[ids[row] for row in rows] for ids in (self.clean, self.corrupted)]
            media = [[own[row] for row in rows] for own in self.media]
            yield rows, [torch.tensor(ids, device=self.model.device) for ids in both], media

    def check_seen(self, rows: list[int], found: Tensor, expected: Tensor) -> None:
        """Refuse images of which layers, run one by one, give something else than whole passes.

        Arguments:
            rows: the pairs.
            found, expected: what their runs end with; looked at where they have images.

        Raises:
            InterpError: they differ.
        """
        if any(own[row] for own in self.media for row in rows) and off_by(self.model, found, expected) is not None:
            raise InterpError(
                f"pair {rows[0]} has images of which {type(self.model._module).__name__} shows its layers more than "
                "embeddings, or at other tokens in the one prompt than in the other, so its layers cannot be run one "
                "by one. Patch sites instead: activation_patching, attribution_patching."
            )

    def how_many_circuits(self, input_ids: Tensor) -> int:
        """How many circuits run side by side on a batch of (row, position)."""
        return self._how_many(len(self.graph.senders), input_ids.numel())

    def scores(self, score: NDArray[np.float32], ends: NDArray[np.float32], direction: Direction) -> EdgeScores:
        """The result, from (example, sender, receiver) and (2, example) of clean and corrupted prompts."""
        coordinates: dict[str, Sequence[Coordinate]] = {
            "example": range(len(self)),
            "sender": self.graph.senders,
            "receiver": self.graph.receivers,
        }
        return EdgeScores(coordinates, score, ends[0], ends[1], metric=self.metrics.names[0], direction=direction)

    def _how_many(self, nodes: int, tokens: int) -> int:
        return how_many(nodes * tokens * self.model.hidden_size, self.model.device)

    @property
    def _longest(self) -> int:
        return max(map(len, self.clean))

    def measure(self, final: Tensor, rows: list[int], clean: Tensor) -> Tensor:
        """(row,), the metric of last residual streams, under the caller's grad mode.

        Arguments:
            final: (row, hidden), after the last layer at the last token.
            rows: the examples that they are of.
            clean: (row, hidden), the same of the clean prompts, with which `kl` compares.
        """
        compared = self.model.readout(clean) if self.metrics.compares else None
        return self.metrics(self.model.readout(final), torch.tensor(rows, device="cpu"), compared)[:, 0]


def _trial(model: StandardizedTransformer, length: int) -> list[Pair]:
    """Two prompts of a length through the layers one by one, and as a whole: (row, hidden) at the last token."""
    ids = sample_ids(model, length=length)

    @torch.no_grad()
    def as_a_whole() -> Tensor:
        return values_at(model, ids.tolist(), [])[1]

    return [(lambda: _streams(CleanRun.of(model, ids, 0))[1], as_a_whole)]


@in_turn
def edge_attribution_patching(
    model: StandardizedTransformer,
    clean: Any,
    corrupted: Any,
    *,
    images: Any = None,
    corrupted_images: Any = None,
    metric: Metric = "logit_difference",
    answers: Answers | None = None,
    steps: int | None = None,
    direction: Direction = "noising",
    batch_size: int | None = None,
) -> EdgeScores:
    """Estimate what a patch of each edge does to the metric, for all edges by a few passes (EAP, EAP-IG).

    The score of an edge is (what its sender writes in the other run - in this one) times the gradient of the metric at
    what its receiver reads, summed over positions and hidden numbers.

    Arguments:
        model: the model.
        clean, corrupted: as many prompts, two and two of the same number of tokens (texts, `Prompt`s, token ids).
        images: of both prompts of each pair; corrupted_images: of the corrupted ones, where these are others.
        metric: one of `interp.patching.METRICS`, or a function of logits.
        answers: per example, for a named metric (`Metrics`).
        steps: None: the gradient is taken at the run that is patched (EAP). A number m: the mean of the gradients at m
            points on the line between the two runs' embeddings, at the middle of m equal parts (EAP-IG, inputs).
        direction: `noising`: corrupted values into the clean run; `denoising`: the other way.
        batch_size: pairs at once at most; None: as many as suit the device.

    Returns:
        A score for each example and edge.

    Raises:
        InterpError: pairs that differ in length, a model that is no such graph (`ComputationGraph`), images of which
            layers are shown more than embeddings, or bad arguments.

    Syed, Rager & Conmy (2023), arXiv 2310.10348; Hanna, Pezzelle & Belinkov (2024), arXiv 2403.17806.
    """
    if direction not in get_args(Direction):
        raise InterpError(f"direction: unknown {direction!r}.{nearest(str(direction), get_args(Direction))}")
    if steps is not None and steps < 1:
        raise InterpError(f"steps: expected at least 1, or None for the gradient at the patched run, got {steps}.")
    pairs = PromptPairs.of(model, clean, corrupted, metric, answers, images, corrupted_images)
    check_slope(pairs.metrics, direction, steps)
    check_gradients("edge_attribution_patching")
    graph = pairs.graph
    score = np.full((len(pairs), len(graph.senders), len(graph.receivers)), np.nan, dtype=np.float32)
    values = np.empty((2, len(pairs)), dtype=np.float32)
    for rows, ids, media in pairs.batches(batch_size):
        ends = [NodeOutputs.of(model, one, own) for one, own in zip(ids, media, strict=True)]
        with torch.no_grad():
            for index, end in enumerate(ends):
                values[index, rows] = pairs.measure(end.final, rows, ends[0].final).float().cpu()
        base, other = (0, 1) if direction == "noising" else (1, 0)
        final, of_clean, of_other = ends[base].final, ends[0].final, ends[other].final
        differences = ends[other].less(ends[base], model)
        del ends
        run = CleanRun.of(model, ids[base], 0, media[base])
        if any(own for both in media for own in both):
            pairs.check_seen(rows, _streams(run)[1], final)
            pairs.check_seen(rows, _streams(run, differences.embed)[1], of_other)
        found = torch.zeros(len(rows), *graph.exists.shape, dtype=torch.float32, device=final.device)
        points = [0.0] if steps is None else [(step + 0.5) / steps for step in range(steps)]
        for point in points:
            before, last = (
                _streams(run, point * differences.embed) if point else ([call.input for call in run.calls], final)
            )
            _add_scores(found, pairs, rows, run, differences, before, last, of_clean)
        score[rows] = (found / len(points)).cpu().numpy()
    score[:, ~graph.exists] = np.nan
    return pairs.scores(score, values, direction)


@torch.no_grad()
def _streams(run: CleanRun, moved: Tensor | float = 0.0) -> tuple[list[Tensor], Tensor]:
    """The residual stream before each layer, and (row, hidden) after the last, with embeddings moved by something."""
    hidden = run.calls[0].input + moved
    before = []
    for layer in range(run.model.num_layers):
        before.append(hidden)
        hidden = run_layer(run, layer, hidden, {})
    return before, hidden[:, -1]


def _add_scores(
    found: Tensor,
    pairs: PromptPairs,
    rows: list[int],
    run: CleanRun,
    differences: OutputDifferences,
    before: list[Tensor],
    final: Tensor,
    of_clean: Tensor,
) -> None:
    """Add the scores by the gradients of one pass to `found`, (row, sender, receiver), layer by layer downward."""
    graph = pairs.graph
    with torch.enable_grad():
        last = final.detach().requires_grad_()
        (at_last,) = torch.autograd.grad(pairs.measure(last, rows, of_clean).sum(), last)
    gradient = torch.zeros_like(before[0], device=at_last.device)
    gradient[:, -1] = at_last
    found[..., -1] += _products(differences, graph, range(graph.num_layers), gradient[:, None])[..., 0].to(found.device)
    for layer in reversed(range(graph.num_layers)):
        read = LayerGradients.of(run, graph, layer, before[layer], gradient.to(before[layer].device))
        first, lower = graph.attention_inputs(layer).start, graph.heads(layer).start
        there = found[:, :lower, first : graph.mlp_input(layer) + 1]
        there += _products(differences, graph, range(layer), read.inputs).to(found.device)
        if not graph.parallel:
            own = _product(differences.heads(layer), read.inputs[:, -1:])
            found[:, graph.heads(layer), graph.mlp_input(layer)] += own[..., 0].to(found.device)
        gradient = read.before


def _products(differences: OutputDifferences, graph: ComputationGraph, layers: range, gradients: Tensor) -> Tensor:
    """(row, sender, receiver) of the embedding and of all nodes of some layers, the lowest ones."""
    found = [_product(differences.embed[:, :, None], gradients)]
    for layer in layers:
        found.append(_product(differences.heads(layer), gradients))
        found.append(_product(differences.mlps[layer][:, :, None], gradients))
    return torch.cat(found, dim=1)


def _product(written: Tensor, gradients: Tensor) -> Tensor:
    """(row, sender, receiver) of (row, position, sender, hidden) and (row, receiver, position, hidden)."""
    by_sender = written.to(gradients.device).transpose(1, 2).flatten(2).float()
    return by_sender @ gradients.flatten(2).float().transpose(1, 2)

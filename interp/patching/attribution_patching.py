"""Attribution patching: what a patch of each cell of a grid would do to the metric, to first order, for all at once.

Activation patching (`activation_patching`) needs a run for every cell. To first order, what a patch does is the
difference of the site's value in the two runs times the gradient of the metric there, and one backward pass gives the
gradient at every site (Nanda 2023). In plain torch, with `value` of the run that is patched and `other` of the other:

    (gradient,) = torch.autograd.grad(metric(logits), value)
    effect = ((other - value) * gradient).sum(-1)

Where the model is far from linear on the way (a saturated softmax, a norm after a large change) the gradient at one end
misleads. With `steps`, it is averaged over points on the way from the one run to the other: integrated gradients
(Sundararajan et al. 2017; of inputs: Hanna et al. 2024).

Pitfalls. An estimate is no effect: check what matters with `activation_patching`, and how far to trust the rest with
`against_exact`. Large sites (`resid_pre` as a whole) are estimated worse than single heads; effects of two cells do not
add up. At the corrupted prompt the gradient of a probability that is near 0 is near 0: take logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.batching import Budget, batches_alike
from interp.errors import InterpError, nearest
from interp.forward import check_ready, forget_lengths
from interp.model.image_inputs import batches_images, inputs_of_prompts
from interp.model.resolve import place_of
from interp.model.verdicts import off_by
from interp.model.visits import Visit, run_visiting
from interp.passes import check_gradients, in_turn
from interp.patching.activation_patching import (
    Pairs,
    Places,
    PositionSets,
    asked_axes,
    cells_of,
    heads_among,
    kinds_of,
    layers_of,
)
from interp.patching.cells import by_position, run_whole, values_at
from interp.patching.effects import Answers, Metric, Metrics
from interp.prompts import Media
from interp.results import Coordinate, Direction, PatchingResult
from interp.sites import HEAD_KINDS, MAP_KINDS, Site

if TYPE_CHECKING:
    import pandas as pd

    from interp.model import StandardizedTransformer

__all__ = ["Way", "against_exact", "attribution_patching", "check_slope"]

Way = Literal["inputs", "sites"]


@in_turn
def attribution_patching(
    model: StandardizedTransformer,
    clean: Any,
    corrupted: Any,
    sites: str | Sequence[str] = "resid_pre",
    positions: PositionSets = "all",
    *,
    images: Any = None,
    corrupted_images: Any = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | str | None = None,
    direction: Direction = "denoising",
    metric: Metric | Sequence[Metric] | Mapping[str, Metric] = "logit_difference",
    answers: Answers | None = None,
    steps: int | None = None,
    way: Way = "inputs",
    batch_size: int = 64,
) -> PatchingResult:
    """Estimate by gradients what `activation_patching` measures, over the same grid.

    Arguments:
        model: the model.
        clean, corrupted, sites, positions, images, corrupted_images, layers, heads, direction, metric, answers: as of
            `activation_patching`.
        steps: None: the gradient at the run that is written into. A number m: the mean of the gradients at m points on
            the way to the other run, at the middle of m equal parts.
        way: what goes that way. `inputs`: the embeddings, from which everything follows (prompts of a pair need as many
            tokens): m passes for all cells. `sites`: the values at the positions of the grid, of one site and layer at
            a time: m passes for each of these; what a patch of them all does is the sum of its cells.
        batch_size: pairs in a batch at most.

    Returns:
        As `activation_patching`: `patched` is the metric of the unpatched run plus the estimated effect.

    Raises:
        InterpError: as `activation_patching`; a number of steps below 1, pairs of different lengths with `inputs`,
            `kl` at the clean run alone, images of which a model shows its layers more than embeddings with `inputs`.

    Nanda (2023), "Attribution patching: activation patching at industrial scale"; Syed, Rager & Conmy (2023), arXiv
    2310.10348; Sundararajan, Taly & Yan (2017), arXiv 1703.01365; Hanna, Pezzelle & Belinkov (2024), arXiv 2403.17806.
    """
    check_ready(model)
    check_gradients("attribution_patching")
    if way not in get_args(Way):
        raise InterpError(f"way: unknown {way!r}.{nearest(str(way), get_args(Way))}")
    if steps is not None and steps < 1:
        raise InterpError(f"steps: expected at least 1, or None for the gradient at the patched run, got {steps}.")
    base, source = Pairs.of(model, clean, corrupted, images, corrupted_images).directed(direction)
    kinds = kinds_of(sites)
    places = Places.of(positions, base, source, whole=any(kind in MAP_KINDS for kind in kinds))
    by_kind = {kind: layers_of(model, kind, layers) for kind in kinds}
    every = sorted({layer for there in by_kind.values() for layer in there})
    chosen = heads_among(model, heads, by_kind)
    metrics = Metrics.of(model, metric, answers, len(base))
    check_slope(metrics, direction, steps)
    estimate = _Estimate(model, metrics, direction, steps, way)
    effect = np.full(
        (len(base), len(kinds), len(every), len(places.labels), len(chosen), len(metrics.names)), np.nan,
        dtype=np.float32,
    )  # fmt: skip
    ends = np.empty((2, len(base), len(metrics.names)), dtype=np.float32)
    ids = [[one.input_ids for one in prompts] for prompts in (base, source)]
    media = [[one.media for one in prompts] for prompts in (base, source)]
    alike = [
        (len(ids[1][pair]), *(one[pair] is not None for one in media), tuple(into), tuple(of))
        for pair, (into, of) in enumerate(zip(places.base, places.source, strict=True))
    ]
    budget = Budget.of(None, model.device).tokens
    if any(one is not None for of in media for one in of) and not batches_images(model):
        batch_size = 1
    for rows in batches_alike(ids[0], alike, batch_size, 1, budget=budget):
        first = rows[0]
        batch = _Batch(
            rows, [ids[0][row] for row in rows], [ids[1][row] for row in rows], [media[0][row] for row in rows],
            [media[1][row] for row in rows], places.base[first], places.source[first],
        )  # fmt: skip
        there = [Site(kind, layer) for kind, own in by_kind.items() for layer in own]
        found, ends[0, rows], ends[1, rows] = estimate.of(batch, there)
        for index, (kind, own) in enumerate(by_kind.items()):
            for cell in cells_of(model, kind, own, len(places.labels), chosen):
                columns = batch.base[cell.place]
                if columns is None:
                    continue
                products = found[Site(kind, cell.layer)][:, :, list(columns)].sum(2)  # (metric, row[, head])
                if kind in HEAD_KINDS:
                    products = products.sum(2) if cell.head is None else products[..., cell.head]
                where = (index, every.index(cell.layer), cell.place, chosen.index(cell.head))
                effect[(rows, *where)] = products.T.numpy()
    axes: dict[str, Sequence[Coordinate]] = {
        "example": range(len(base)), "site": kinds, "layer": every, "position": places.labels,
        "head": [head for head in chosen if head is not None],
    }  # fmt: skip
    asked = {"site": not isinstance(sites, str), "position": positions is not None, "head": heads is not None}
    coordinates, patched = asked_axes(axes, ends[0].reshape(len(base), 1, 1, 1, 1, -1) + effect, asked)
    of_clean, of_corrupted = (ends[1], ends[0]) if direction == "denoising" else (ends[0], ends[1])
    return PatchingResult(
        coordinates,
        patched=patched,
        clean=of_clean,
        corrupted=of_corrupted,
        token_ids=places.token_ids(base),
        direction=direction,
        group_names=metrics.names,
    )


def check_slope(metrics: Metrics, direction: Direction, steps: int | None) -> None:
    """Refuse a metric that has its minimum, and so no slope, where the one gradient is taken.

    Raises:
        InterpError: it is `kl` at the clean run.
    """
    if metrics.compares and direction == "noising" and steps is None:
        raise InterpError(
            "metric 'kl' compares with the clean run, at which its gradient is zero. Take steps=5 (points on the way), "
            "direction='denoising', or another metric."
        )


@dataclass(frozen=True)
class _Batch:
    """Pairs that are written at the same tokens.

    Arguments:
        rows: which, by number.
        base_ids, source_ids: token ids of the prompts that are written into, and of those that values are of.
        base_media, source_media: what these are fed beside them.
        base, source: by place, the tokens that are written, and those that values stand at; None: no such place.
    """

    rows: list[int]
    base_ids: list[list[int]]
    source_ids: list[list[int]]
    base_media: list[Media | None]
    source_media: list[Media | None]
    base: Sequence[tuple[int, ...] | None]
    source: Sequence[tuple[int, ...] | None]

    def difference(self, own: Tensor, other: Tensor) -> Tensor:
        """What is written less what is there, (row, position, ...), zero where nothing is written."""
        difference = torch.zeros_like(own)
        for into, of in zip(self.base, self.source, strict=True):
            if into is not None and of is not None:
                difference[:, list(into)] = other[:, list(of)].to(own) - own[:, list(into)]
        return difference


@dataclass(frozen=True)
class _Estimate:
    """Differences times gradients; arguments as of `attribution_patching`."""

    model: StandardizedTransformer
    metrics: Metrics
    direction: Direction
    steps: int | None
    way: Way

    def of(self, batch: _Batch, sites: Sequence[Site]) -> tuple[dict[Site, Tensor], NDArray, NDArray]:
        """Site -> (metric, row, position[, head]), on the CPU; and (row, metric) of both prompts as they are."""
        with torch.no_grad():
            theirs, of_source = values_at(self.model, batch.source_ids, sites, batch.source_media)
            ours, of_base = values_at(self.model, batch.base_ids, sites, batch.base_media)
            of_clean = of_source if self.direction == "denoising" else of_base
            examples = torch.tensor(batch.rows, device="cpu")
            ends = [self.metrics.of_hidden(one, examples, of_clean).numpy() for one in (of_base, of_source)]
            differences = {site: batch.difference(ours[site], theirs[site]) for site in sites}
        del theirs, ours
        points = [] if self.steps is None else [(step + 0.5) / self.steps for step in range(self.steps)]
        found: dict[Site, Tensor] = {}
        if not points:
            self._add(found, batch, differences, of_clean, {})
        elif self.way == "inputs":
            step = self._between_inputs(batch, of_source)
            for point in points:
                self._add(found, batch, differences, of_clean, {Site("embed"): point * step})
        else:
            for site in sites:
                for point in points:
                    moved = {site: point * differences[site]}
                    self._add(found, batch, {site: differences[site]}, of_clean, moved)
        return {site: product / max(1, len(points)) for site, product in found.items()}, ends[0], ends[1]

    def _between_inputs(self, batch: _Batch, of_source: Tensor) -> Tensor:
        """(row, position, hidden), from the embeddings of the one prompt to those of the other.

        Arguments:
            batch: the pairs.
            of_source: (row, hidden), what the prompts end with that values are of.
        """
        if len(batch.base_ids[0]) != len(batch.source_ids[0]):
            raise InterpError(
                f"pair {batch.rows[0]} has prompts of {len(batch.base_ids[0])} and {len(batch.source_ids[0])} tokens: "
                "there is no way from the embeddings of the one to those of the other. Take way='sites', or steps=None."
            )
        embed = Site("embed")
        both = ((batch.base_ids, batch.base_media), (batch.source_ids, batch.source_media))
        with torch.no_grad():
            ends = [values_at(self.model, ids, [embed], media)[0][embed] for ids, media in both]
            step = ends[1] - ends[0]
            if any(one is not None for _, media in both for one in media):
                self._check_all_follows(batch, step, of_source)
        return step

    def _check_all_follows(self, batch: _Batch, step: Tensor, of_source: Tensor) -> None:
        """Refuse images of which the layers are shown more than embeddings: features, positions, a mask of their own.

        Raises:
            InterpError: the one prompt with the embeddings of the other ends with something else than the other.
        """
        found: list[Tensor] = []
        embed, last = Site("embed"), Site("resid_post", self.model.num_layers - 1)
        visits = [
            Visit(str(embed), place_of(self.model, embed), lambda live: live + step.to(live)),
            Visit(str(last), place_of(self.model, last), lambda live: found.append(live[:, -1].clone())),
        ]
        run_whole(self.model, batch.base_ids, visits, batch.base_media)
        if off_by(self.model, found[0], of_source) is not None:
            raise InterpError(
                f"pair {batch.rows[0]} has images of which {type(self.model._module).__name__} shows its layers more "
                "than embeddings, or at other tokens in the one prompt than in the other: the way from the embeddings "
                "of the one to those of the other does not end at the other run. Take way='sites', or steps=None."
            )

    def _add(
        self,
        found: dict[Site, Tensor],
        batch: _Batch,
        differences: Mapping[Site, Tensor],
        of_clean: Tensor,
        moved: Mapping[Site, Tensor],
    ) -> None:
        """Add differences times the gradients of one pass, in which some sites are moved by so much."""
        kept: dict[Site, Tensor] = {}
        final: list[Tensor] = []

        def at(site: Site) -> Callable[[Tensor], Tensor]:
            def call(live: Tensor) -> Tensor:
                value = live.clone()
                if site in moved:
                    by_position(site.kind, value).add_(moved[site].to(value))
                if not value.requires_grad:  # nothing before it does, such as in a model with frozen weights
                    value.requires_grad_()
                kept[site] = value
                return value

            return call

        last = Site("resid_post", self.model.num_layers - 1)
        visited = [site for site in moved if site not in differences] + list(differences)
        visits = [Visit(str(site), place_of(self.model, site), at(site)) for site in visited]
        visits.append(Visit(str(last), place_of(self.model, last), lambda live: final.append(live[:, -1])))
        forget_lengths(self.model)
        with torch.enable_grad():
            fed = inputs_of_prompts(self.model, batch.base_ids, batch.base_media)
            run_visiting(self.model, visits, stop=True, **fed, use_cache=False)
            compared = self.model.readout(of_clean) if self.metrics.compares else None
            examples = torch.tensor(batch.rows, device="cpu")
            values = self.metrics(self.model.readout(final[0]), examples, compared).sum(0)  # (metric,)
            inputs = [kept[site] for site in differences]
            by_metric = [
                torch.autograd.grad(value, inputs, retain_graph=index < len(values) - 1, allow_unused=True)
                for index, value in enumerate(values)
            ]
        for index, (site, difference) in enumerate(differences.items()):
            product = torch.stack([_product(site.kind, difference, gradients[index]) for gradients in by_metric])
            found[site] = found[site] + product if site in found else product


def _product(kind: str, difference: Tensor, gradient: Tensor | None) -> Tensor:
    """(row, position[, head]) on the CPU, summed over what stands behind."""
    leading = 3 if kind in HEAD_KINDS else 2
    if gradient is None:  # nothing of the last token depends on it
        return torch.zeros(difference.shape[:leading], device="cpu")
    product = difference.float() * by_position(kind, gradient).float()
    return product.flatten(leading).sum(-1).cpu() if product.dim() > leading else product.cpu()


def against_exact(estimate: PatchingResult, exact: PatchingResult) -> pd.DataFrame:
    """Put estimated effects beside those that patching has.

    Arguments:
        estimate: of `attribution_patching`.
        exact: of `activation_patching`, over the same pairs, grid and metrics.

    Returns:
        A row for each cell and metric: the axes of the grid, `metric`, and, as means over examples, `estimated`,
        `exact` and `error` (their difference).

    Raises:
        InterpError: the two are of different grids.
    """
    if dict(estimate.coordinates) != dict(exact.coordinates) or estimate.group_names != exact.group_names:
        raise InterpError(f"expected the same grid and metrics, got {estimate!r} and {exact!r}.")
    if estimate.direction != exact.direction:
        raise InterpError(f"expected the same direction, got {estimate.direction} and {exact.direction}.")
    frames = [one.to_frame() for one in (estimate, exact)]
    cells = [*estimate.grid, "metric"]
    means = [frame.groupby(cells, sort=False)["effect"].mean() for frame in frames]
    table = means[0].rename("estimated").to_frame()
    table["exact"] = means[1]
    table["error"] = table["estimated"] - table["exact"]
    return table.reset_index()

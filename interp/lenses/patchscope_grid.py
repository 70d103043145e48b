"""The patchscope lens over a grid: what is in a source's layer, written at every target layer.

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102, patch all source layers into all target layers. In one
walk up the layers, the latents of all source layers join at each target layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.batching import WALKING_TOKENS
from interp.lenses.patchscope import check_lens_inputs, read_baseline
from interp.lenses.reading import read_layers
from interp.passes import in_turn
from interp.patching import Patch, PatchedPrompts, TargetPositions, check_patch, run_patched, walk, walk_fits
from interp.patching.plan import check_held
from interp.patching.run import Ends, EndsPlan, run
from interp.readout import Groups, TokenGroups
from interp.results import LensResult
from interp.sites import Site
from interp.sites.parsing import check_lens_layers
from interp.translators.affine_maps import AffinePairs, LatentMap

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["patchscope_grid"]

_ROWS_AT_ONCE = 256  # runs whose logits are held together


@in_turn
@torch.no_grad()
def patchscope_grid(
    model: StandardizedTransformer,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    target_positions: TargetPositions,
    groups: Groups,
    *,
    source_layers: Sequence[int],
    target_layers: Sequence[int] | None = None,
    patch: Patch = "one_layer",
    site: str = "resid_post",
    mapping: LatentMap | AffinePairs | None = None,
    top_k: int = 5,
    batch_size: int = 64,
    reference: Tensor | None = None,
) -> LensResult:
    """Patchscope lens over source layers x target layers (Ghandeharioun et al. 2024).

    Arguments:
        model: the model that runs the target prompts. The latents may be another one's.
        latents: (source layer, example, hidden_size), what is written; or (source layer, example, position,
            hidden_size) where several tokens are. Any device and float dtype, the model's is used.
        target_ids: per example: token ids of its target prompt as the model is fed, unpadded.
        target_positions: per example: the token of the target prompt that is written, or several, all at
            once, counted from 0 without padding.
        groups: per example, per group: token ids whose probability is summed.
        source_layers: what the first axis of `latents` stands for, ascending.
        target_layers: where they are written, ascending; None: every layer of the model.
        patch: `one_layer`; or `from_layer`: at every layer after the target layer that layer's own latent is written
            too (Dumas et al. 2025), so it has to be among the source layers.
        site: kind of site that is written, a hidden state that each layer has (`interp.sites.HIDDEN_KINDS`).
        mapping: turns the latents into what is written, the same at each target layer or (`AffinePairs`) one for
            each. None: they are written as they are.
        top_k: how many top tokens are kept.
        batch_size: target prompts that walk together, each with all its runs; fewer where these would not fit.
        reference: (example, hidden_size), the residual stream after the model's last layer at the source token, which
            gives `surprisal` and `model_top_id`; None: not known.

    Returns:
        The lens, axes `example`, `source_layer`, `target_layer`; logarithms in nats. `kl` compares with the last source
        layer at the last target layer; `baseline` is read after the unpatched target prompts.

    Raises:
        InterpError: shapes that do not fit, layers that the model has not, a position outside its target prompt, token
            ids outside the vocabulary, maps that lack a target layer.
    """
    targets = check_lens_layers(range(model.num_layers) if target_layers is None else target_layers, model.num_layers)
    sources = _ascending(source_layers)
    check_patch(patch, site)
    later = range(targets[0] + 1, model.num_layers) if patch == "from_layer" else range(0)
    check_held(patch, targets, later, sources)
    if isinstance(mapping, AffinePairs):
        for layer in {*targets, *later}:
            mapping.to_layer(layer)  # says so where there is none
    prompts = PatchedPrompts.of(model, latents, sources, target_ids, target_positions, mapped=mapping is not None)
    plan = _GridPlan(prompts, targets, later, site, mapping)
    check_lens_inputs(prompts, groups, reference, batch_size)
    padded = TokenGroups.pad(groups, model.vocab_size)
    parts, order = [], []
    for chosen, chunks in groupby(run(plan, batch_size), key=itemgetter(0)):
        rows = torch.tensor(chosen, dtype=torch.long, device="cpu")
        order += chosen
        known = None if reference is None else reference[rows.to(reference.device)]
        parts.append(_read(model, (ends for _, ends in chunks), padded.rows(rows), known, plan, top_k))
    return LensResult.concatenate(parts, order=order)


@dataclass(frozen=True)
class _GridPlan(EndsPlan):
    """Every source layer at every target layer; entries are (target layer, source layer).

    A batch comes in chunks of source layers, the last ones first.
    """

    prompts: PatchedPrompts
    targets: tuple[int, ...]
    later: range  # the layers that are written with their own latents
    kind: str
    mapping: LatentMap | AffinePairs | None

    @property
    def model(self) -> StandardizedTransformer:
        return self.prompts.model

    @property
    def input_ids(self) -> Sequence[Sequence[int]]:
        return self.prompts.input_ids

    @property
    def positions(self) -> Sequence[tuple[int, ...]]:
        return self.prompts.positions

    @property
    def entries(self) -> tuple[int, ...]:
        return len(self.targets), len(self.sources)

    @property
    def sources(self) -> tuple[int, ...]:
        """The layers that there are latents of."""
        return self.prompts.layers

    def fits(self) -> bool:
        return self.kind == "resid_post" and walk_fits(self.model, self.longest)

    def fast(self, rows: list[int]) -> Iterator[Ends]:
        written, later = self._written(rows)
        tokens = sum(len(self.input_ids[row]) for row in rows)
        at_once = max(1, WALKING_TOKENS // (len(self.targets) * tokens))
        for stop in range(len(self.sources), 0, -at_once):
            variants = {layer: latents[max(0, stop - at_once) : stop] for layer, latents in written.items()}
            yield Ends(
                *walk(
                    self.model, self.prompts.ids(rows), self.positions[rows[0]], variants,
                    layers=self.targets, later=later or None,
                )
            )  # fmt: skip

    def plain(self, rows: list[int]) -> Iterator[Tensor]:
        written, later = self._written(rows)
        ids, positions = [self.input_ids[row] for row in rows], [self.positions[row] for row in rows]
        for source in reversed(range(len(self.sources))):
            hidden = []
            for target in self.targets:
                own = [(Site(self.kind, layer), held) for layer, held in later.items() if layer > target]
                writes = [(Site(self.kind, target), written[target][source]), *own]
                hidden.append(run_patched(self.model, ids, positions, writes))
            yield torch.stack(hidden)[:, None]

    def _written(self, rows: Sequence[int]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Target layer -> (source layer, row, position, hidden); later layer -> (row, position, hidden)."""
        layers = {*self.targets, *self.later}
        if isinstance(self.mapping, AffinePairs):
            mapped = {layer: self.prompts.written(rows, self.mapping.to_layer(layer)) for layer in layers}
        else:
            mapped = dict.fromkeys(layers, self.prompts.written(rows, self.mapping))
        return (
            {layer: mapped[layer] for layer in self.targets},
            {layer: mapped[layer][self.sources.index(layer)] for layer in self.later},
        )


def _ascending(source_layers: Sequence[int]) -> tuple[int, ...]:
    """Layers of the source's model, whose depth is not known here."""
    return check_lens_layers(source_layers, max([int(layer) for layer in source_layers], default=0) + 1)


def _read(
    model: StandardizedTransformer,
    chunks: Iterator[Ends],
    groups: TokenGroups,
    reference: Tensor | None,
    plan: _GridPlan,
    top_k: int,
) -> LensResult:
    """The lens of one batch, from the states that its runs end with."""
    rows = len(groups)
    found: list[dict[str, NDArray]] = []
    last, baseline = None, None
    for hidden, clean in chunks:  # (target layer, source layer, row, hidden)
        if last is None:
            last, baseline = hidden[-1, -1], read_baseline(model, clean, groups)
        sources = hidden.shape[1]
        # Behind the target layers stands what `kl` compares with.
        states = torch.cat([hidden.flatten(1, 2), last.repeat(sources, 1)[None]])  # (target layer and 1, run, hidden)
        of_run = torch.arange(rows, device="cpu").repeat(sources)
        read = [
            read_layers(
                model,
                states[:, part],
                groups.rows(of_run[part]),
                layers=tuple(range(len(states))),
                top_k=top_k,
                reference=None if reference is None else reference[of_run[part].to(reference.device)],
            )
            for part in _slices(states.shape[1])
        ]
        arrays = LensResult.concatenate(read).select(layer=range(len(plan.targets))).arrays()
        found.append({name: values.reshape(sources, rows, *values.shape[1:]) for name, values in arrays.items()})
    whole = {name: np.concatenate([part[name] for part in found[::-1]]).swapaxes(0, 1) for name in found[0]}
    whole["model_top_id"] = whole["model_top_id"][:, 0]
    coordinates = {"example": range(rows), "source_layer": plan.sources, "target_layer": plan.targets}
    return LensResult(coordinates=coordinates, baseline=baseline, **whole)  # type: ignore[arg-type]


def _slices(runs: int) -> list[slice]:
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, max(runs, 1), _ROWS_AT_ONCE)]

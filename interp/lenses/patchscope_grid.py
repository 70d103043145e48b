"""The patchscope lens over a grid: at which layer can a model make use of what is in another layer's state?

The state of every source layer is written at every target layer. What a layer holds may only be of use to much earlier
layers, or to later ones; a state far from its own layer is also unlike what stands there, so a low value says nothing
of either by itself. In plain nnsight, for latents (source layer, hidden_size):

    log_prob = {}
    for source in source_layers:
        for target in target_layers:
            with model.trace(target_prompt):
                model.layers_output[target][:, position] = latents[source]
                log_prob[source, target] = model.logits[:, -1].log_softmax(-1)

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102, patch all source layers into all target layers. In one
walk up the layers, the latents of all source layers join at each target layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.batching import WALKING_TOKENS
from interp.lenses.patchscope import check_lens_inputs, read_baseline
from interp.lenses.patchscope_inputs import Part, PatchscopeInputs, TargetPositions, TargetPrompts
from interp.lenses.reading import Positions, Targets, read_layers
from interp.lenses.sources import Latents, SourcePrompts
from interp.passes import in_turn
from interp.patching import Patch, PatchedPrompts, check_patch, run_patched, walk, walk_fits
from interp.patching.plan import check_held
from interp.patching.run import Ends, EndsPlan, run
from interp.readout import TokenGroups
from interp.results import LensResult
from interp.sites import Site
from interp.sites.parsing import check_lens_layers
from interp.translators.affine_maps import AffinePairs, LatentMap

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["patchscope_grid"]

_ROWS_AT_ONCE = 256  # runs whose logits are held together


@torch.no_grad()
def patchscope_grid(
    model: StandardizedTransformer,
    source: SourcePrompts | Latents,
    target_prompts: TargetPrompts,
    target_positions: TargetPositions | None = None,
    targets: Targets | None = None,
    *,
    images: Any = None,
    source_positions: Positions = "last",
    source_model: StandardizedTransformer | None = None,
    source_layers: Sequence[int] | None = None,
    target_layers: Sequence[int] | None = None,
    patch: Patch = "one_layer",
    site: str = "resid_post",
    mapping: LatentMap | AffinePairs | None = None,
    policy: str = "first_token",
    top_k: int = 5,
    batch_size: int = 64,
    batch_tokens: int | None = None,
) -> LensResult:
    """Patchscope lens over source layers x target layers (Ghandeharioun et al. 2024).

    Arguments:
        model: the model that runs the target prompts.
        source, target_prompts, target_positions, targets, images, source_positions, source_model, site, policy, top_k,
            batch_tokens: as in `patchscope_lens`.
        source_layers: the layers whose latents are written, ascending; None: all that there are latents of, or that the
            source model has.
        target_layers: where they are written, ascending; None: every layer of the model.
        patch: `one_layer`; or `from_layer`: at every layer after the target layer that layer's own latent is written
            too (Dumas et al. 2025), so it has to be among the source layers.
        mapping: turns the latents into what is written, the same at each target layer or (`AffinePairs`) one for
            each. None: they are written as they are.
        batch_size: target prompts that walk together, each with all its runs; fewer where these would not fit.

    Returns:
        The lens, axes `example`, `source_layer`, `target_layer`; logarithms in nats. `kl` compares with the last source
        layer at the last target layer; for `baseline`, `surprisal` and `model_top_id` see `patchscope_lens`.

    Raises:
        InterpError: as `patchscope_lens` does, or maps that lack a target layer.
    """
    targeted = check_lens_layers(range(model.num_layers) if target_layers is None else target_layers, model.num_layers)
    check_patch(patch, site)
    given = PatchscopeInputs.of(
        model, source, target_prompts, target_positions, images=images, source_positions=source_positions,
        source_model=source_model, targets=targets, policy=policy, batch_tokens=batch_tokens,
    )  # fmt: skip
    sources = _ascending(given.source.all_layers() if source_layers is None else source_layers)
    later = range(targeted[0] + 1, model.num_layers) if patch == "from_layer" else range(0)
    check_held(patch, targeted, later, sources)
    if isinstance(mapping, AffinePairs):
        for layer in {*targeted, *later}:
            mapping.to_layer(layer)  # says so where there is none
    lens = partial(
        _of_part, model, sources=sources, targets=targeted, later=later, site=site, mapping=mapping, top_k=top_k,
        batch_size=batch_size,
    )  # fmt: skip
    return given.results(site, sources, lens)


@in_turn
def _of_part(
    model: StandardizedTransformer,
    part: Part,
    *,
    sources: tuple[int, ...],
    targets: tuple[int, ...],
    later: range,
    site: str,
    mapping: LatentMap | AffinePairs | None,
    top_k: int,
    batch_size: int,
) -> LensResult:
    """The grid of examples whose latents are there."""
    prompts = part.prompts(model, mapped=mapping is not None).at(sources)
    check_lens_inputs(prompts, part.groups, part.reference, batch_size)
    plan = _GridPlan(prompts, targets, later, site, mapping)
    padded = TokenGroups.pad(part.groups, model.vocab_size)
    parts, order = [], []
    for chosen, chunks in groupby(run(plan, batch_size), key=itemgetter(0)):
        rows = torch.tensor(chosen, dtype=torch.long, device="cpu")
        order += chosen
        parts.append(_read(model, (ends for _, ends in chunks), padded.rows(rows), part.known(rows), plan, top_k))
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

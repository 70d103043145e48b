"""The patchscope lens over a grid: what is in a source's layer, written at every target layer.

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102, patch all source layers into all target layers. In one
walk up the layers, the latents of all source layers join at each target layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.batching import WALKING_TOKENS, batches_alike
from interp.errors import InterpError, nearest
from interp.forward import run_patched, walk, walk_fits, whole_batches
from interp.lenses.patching import Patch, PatchedPrompts, TargetPositions, check_patch
from interp.lenses.patchscope import check_lens_inputs, read_baseline, run_unpatched
from interp.lenses.reading import read_layers
from interp.passes import in_turn
from interp.readout import Groups, TokenGroups
from interp.results import LensResult
from interp.sites import HIDDEN_KINDS, Site
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
    grid = _Grid(_ascending(source_layers), targets, patch, site, mapping)
    grid.check(model)
    prompts = PatchedPrompts.of(model, latents, grid.sources, target_ids, target_positions, mapped=mapping is not None)
    check_lens_inputs(prompts, groups, reference, batch_size)
    padded = TokenGroups.pad(groups, model.vocab_size)
    fast = site == "resid_post" and len(prompts) > 0 and walk_fits(model, prompts.longest)
    parts, order = [], []
    for chosen in _batches(prompts, grid, batch_size, fast=fast):
        rows = torch.tensor(chosen, dtype=torch.long, device="cpu")
        order += chosen
        known = None if reference is None else reference[rows.to(reference.device)]
        parts.append(_read(model, _chunks(prompts, grid, chosen, fast=fast), padded.rows(rows), known, grid, top_k))
    return LensResult.concatenate(parts, order=order)


@dataclass(frozen=True)
class _Grid:
    """What is written where."""

    sources: tuple[int, ...]
    targets: tuple[int, ...]
    patch: Patch
    site: str
    mapping: LatentMap | AffinePairs | None

    def check(self, model: StandardizedTransformer) -> None:
        check_patch(self.patch)
        if self.site not in HIDDEN_KINDS:
            raise InterpError(
                "site: expected a kind of site that each layer has, got "
                f"{self.site!r}.{nearest(self.site, HIDDEN_KINDS)}"
            )
        missing = [layer for layer in self.later(model.num_layers) if layer not in self.sources]
        if missing:
            raise InterpError(
                f"patch 'from_layer' writes each layer after {self.targets[0]} with its own latent, got none of "
                f"{missing} among source_layers. Collect those layers too, or choose patch='one_layer'."
            )
        if isinstance(self.mapping, AffinePairs):
            for layer in {*self.targets, *self.later(model.num_layers)}:
                self.mapping.to_layer(layer)  # says so where there is none

    def later(self, num_layers: int) -> range:
        """The layers that are written with their own latents."""
        return range(self.targets[0] + 1, num_layers) if self.patch == "from_layer" else range(0)

    def written(self, prompts: PatchedPrompts, chosen: Sequence[int]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Target layer -> (source layer, row, position, hidden); later layer -> (row, position, hidden)."""
        later = self.later(prompts.model.num_layers)
        if isinstance(self.mapping, AffinePairs):
            mapped = {layer: prompts.written(chosen, self.mapping.to_layer(layer)) for layer in {*self.targets, *later}}
        else:
            mapped = dict.fromkeys({*self.targets, *later}, prompts.written(chosen, self.mapping))
        return (
            {layer: mapped[layer] for layer in self.targets},
            {layer: mapped[layer][self.sources.index(layer)] for layer in later},
        )


def _ascending(source_layers: Sequence[int]) -> tuple[int, ...]:
    """Layers of the source's model, whose depth is not known here."""
    return check_lens_layers(source_layers, max([int(layer) for layer in source_layers], default=0) + 1)


def _batches(prompts: PatchedPrompts, grid: _Grid, batch_size: int, *, fast: bool) -> list[list[int]]:
    if not len(prompts):
        return [[]]  # results of length 0
    if fast:
        runs = len(grid.sources) * len(grid.targets)
        return batches_alike(prompts.input_ids, prompts.positions, batch_size, runs)
    return whole_batches(prompts.model, [len(ids) for ids in prompts.input_ids], batch_size)


def _chunks(
    prompts: PatchedPrompts, grid: _Grid, chosen: Sequence[int], *, fast: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """By chunk of source layers, the last ones first: (target layer, source layer, row, hidden) and (row, hidden), what
    patched and unpatched target prompts end with."""
    if not chosen:
        width = prompts.model.hidden_size
        yield (
            torch.empty(len(grid.targets), len(grid.sources), 0, width, dtype=torch.float32, device="cpu"),
            torch.empty(0, width, dtype=torch.float32, device="cpu"),
        )
        return
    written, later = grid.written(prompts, chosen)
    ids = [prompts.input_ids[example] for example in chosen]
    positions = [prompts.positions[example] for example in chosen]
    clean = torch.empty(0, dtype=torch.float32, device="cpu") if fast else run_unpatched(prompts.model, ids)
    at_once = max(1, WALKING_TOKENS // (len(grid.targets) * sum(map(len, ids)))) if fast else 1
    for stop in range(len(grid.sources), 0, -at_once):
        variants = {layer: latents[max(0, stop - at_once) : stop] for layer, latents in written.items()}
        if fast:
            yield walk(
                prompts.model, prompts.ids(chosen), positions[0], variants, layers=grid.targets, later=later or None
            )
            continue
        hidden = []
        for target in grid.targets:
            writes = [
                (target, variants[target][0]),
                *((layer, held) for layer, held in later.items() if layer > target),
            ]
            sites = [(Site(grid.site, layer), latent) for layer, latent in writes]
            hidden.append(run_patched(prompts.model, ids, positions, sites))
        yield torch.stack(hidden)[:, None], clean


def _read(
    model: StandardizedTransformer,
    chunks: Iterator[tuple[Tensor, Tensor]],
    groups: TokenGroups,
    reference: Tensor | None,
    grid: _Grid,
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
        arrays = LensResult.concatenate(read).select(layer=range(len(grid.targets))).arrays()
        found.append({name: values.reshape(sources, rows, *values.shape[1:]) for name, values in arrays.items()})
    whole = {name: np.concatenate([part[name] for part in found[::-1]]).swapaxes(0, 1) for name in found[0]}
    whole["model_top_id"] = whole["model_top_id"][:, 0]
    coordinates = {"example": range(rows), "source_layer": grid.sources, "target_layer": grid.targets}
    return LensResult(coordinates=coordinates, baseline=baseline, **whole)  # type: ignore[arg-type]


def _slices(runs: int) -> list[slice]:
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, max(runs, 1), _ROWS_AT_ONCE)]

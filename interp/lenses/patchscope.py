"""The patchscope lens: a hidden state is written into another prompt's run, and the model says what is in it.

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102. With target prompts that translate, and with patching from
a layer onwards: Dumas et al., "Separating Tongue from Thought" (2025), arXiv 2411.08745.

Latents written after layers go through one walk up the layers (`interp.forward`). Other sites, and families that the
walk does not fit, are served the plain way, one traced forward pass of the whole target prompts for each layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.reading import read_layers
from interp.lenses.remote import patch_elsewhere
from interp.passes import in_turn
from interp.patching import (
    Patch,
    PatchedPrompts,
    PatchPlan,
    TargetPositions,
    check_number,
    run_patched,
    walk,
    walk_fits,
)
from interp.patching.plan import held_layers
from interp.patching.run import Ends, EndsPlan, run
from interp.readout import Groups, TokenGroups, reduce_hidden
from interp.results import Floats, LensResult
from interp.translators.affine_maps import LatentMap

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["patchscope_lens"]


@in_turn
@torch.no_grad()
def patchscope_lens(
    model: StandardizedTransformer,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    target_positions: TargetPositions,
    groups: Groups,
    *,
    layers: Sequence[int],
    patch: Patch = "one_layer",
    site: str = "resid_post",
    latent_layers: Sequence[int] | None = None,
    mapping: LatentMap | None = None,
    top_k: int = 5,
    batch_size: int = 64,
    reference: Tensor | None = None,
    remote: bool | str = False,
) -> LensResult:
    """Patchscope lens (Ghandeharioun et al. 2024): write latents into target prompts, read the next token.

    For each layer j the target prompt is run once, with the source's latent written over the target's own at one token:
    at layer j only (`one_layer`), or at j and every later layer, each with the latent of that same layer (`from_layer`,
    Dumas et al. 2025). What the model then predicts after the target prompt's last token is the reading of layer j.

    Arguments:
        model: the model that runs the target prompts. The latents may be another one's.
        latents: (layer, example, hidden_size), what is written; or (layer, example, position, hidden_size) where
            several tokens are. Any device and float dtype, the model's is used.
        target_ids: per example: token ids of its target prompt as the model is fed, unpadded.
        target_positions: per example: the token of the target prompt that is written, counted from 0 without padding;
            or several that are written at once, equally many in every example.
        groups: per example, per group: token ids whose probability is summed.
        layers: the layers j, ascending.
        patch: `one_layer` or `from_layer`.
        site: kind of site that is written, a hidden state that each layer has (`interp.sites.HIDDEN_KINDS`).
        latent_layers: what the axis `layer` of `latents` stands for, ascending; None: `layers`. `one_layer` needs all
            of `layers` there, `from_layer` every layer from the first of `layers` to the model's last.
        mapping: turns the latents into what is written (`interp.translators`); latents of a model of another width need
            one. None: they are written as they are.
        top_k: how many top tokens are kept.
        batch_size: target prompts in a forward pass at most; memory does not depend on the number of examples.
        reference: (example, hidden_size), the residual stream after the model's last layer at the source token, which
            gives `surprisal` and `model_top_id`; None: not known.
        remote: True: on NDIF, in one session of plain traces; `local`: packed as for a server, and run here; or an
            address.

    Returns:
        The lens over all examples, logarithms in nats; `baseline` is read after the unpatched target prompts.

    Raises:
        InterpError: shapes that do not fit, layers that the model or the latents do not have, a position outside its
            target prompt, token ids outside the vocabulary.
    """
    layers = tuple(map(int, layers))
    held = held_layers(layers, latent_layers, patch, site, model.num_layers)
    prompts = PatchedPrompts.of(model, latents, held, target_ids, target_positions, mapped=mapping is not None)
    plan = _LayersPlan(prompts, site, patch, layers, mapping)
    check_lens_inputs(prompts, groups, reference, batch_size)
    padded_groups = TokenGroups.pad(groups, model.vocab_size)
    if remote and len(prompts):
        if plan.mapping is not None:
            raise InterpError("mapping: latents go to a remote model as they are. Map them first, or leave it out.")
        writes = [plan.writes(layer, prompts.latents.cpu()) for layer in plan.layers]
        given: dict[str, Any] = dict(layers=plan.layers, top_k=top_k, batch_size=batch_size, remote=remote)
        return patch_elsewhere(
            model, prompts.input_ids, prompts.positions, writes, padded_groups, **given, reference=reference
        )
    parts, order = [], []
    for chosen, (hidden, clean) in run(plan, batch_size):
        rows = torch.tensor(chosen, dtype=torch.long, device="cpu")
        order += chosen
        batch_groups = padded_groups.rows(rows)
        parts.append(
            read_layers(
                model,
                hidden,
                batch_groups,
                layers=plan.layers,
                top_k=top_k,
                reference=None if reference is None else reference[rows.to(reference.device)],
                baseline=read_baseline(model, clean, batch_groups),
            )
        )
    return LensResult.concatenate(parts, order=order)


class _LayersPlan(PatchPlan[Ends], EndsPlan):
    """Every layer by itself; entries are layers."""

    @property
    def entries(self) -> tuple[int, ...]:
        return (len(self.layers),)

    def fits(self) -> bool:
        return self.kind == "resid_post" and walk_fits(self.model, self.longest)

    def fast(self, rows: list[int]) -> Iterator[Ends]:
        written = self.written(rows)
        hidden, clean = walk(
            self.model,
            self.prompts.ids(rows),
            self.positions[rows[0]],
            {layer: written[layer][None] for layer in self.layers},
            layers=self.layers,
            later=written if self.patch == "from_layer" else None,
        )
        yield Ends(hidden[:, 0], clean)

    def plain(self, rows: list[int]) -> Iterator[Tensor]:
        ids, positions = [self.input_ids[row] for row in rows], [self.positions[row] for row in rows]
        written = self.prompts.written(rows, self.mapping)
        yield torch.stack(
            [run_patched(self.model, ids, positions, self.writes(layer, written)) for layer in self.layers]
        )


def check_lens_inputs(prompts: PatchedPrompts, groups: Groups, reference: Tensor | None, batch_size: int) -> None:
    """Raises InterpError on what does not fit the examples of a lens."""
    expected = (len(prompts), prompts.model.hidden_size)
    if reference is not None and tuple(reference.shape) != expected:
        raise InterpError(
            f"reference: expected shape (example, hidden_size) = {expected}, got {tuple(reference.shape)}."
        )
    check_number("groups", groups, len(prompts))
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")


def read_baseline(model: StandardizedTransformer, clean: Tensor, groups: TokenGroups) -> Floats:
    """(row, group), log-probability of the groups after the unpatched target prompts.

    Rows of one target prompt, which stand in memory once (`expand`), are read once, with the groups of them all.
    """
    if not len(clean):
        return np.empty(groups.ids.shape[:2], dtype=np.float32)
    shape = groups.ids.shape
    if clean.stride(0) == 0:
        width = shape[2]
        clean = clean[:1]
        groups = TokenGroups(groups.ids.reshape(1, -1, width), groups.valid.reshape(1, -1, width))
    return reduce_hidden(model, clean, groups, 1).log_prob.view(shape[:2]).cpu().numpy()

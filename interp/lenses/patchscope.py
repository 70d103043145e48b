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

from interp.batching import batches_alike
from interp.errors import InterpError
from interp.forward import run_patched, walk, walk_fits, whole_batches
from interp.lenses.patching import Patch, PatchedPrompts, PatchPlan, TargetPositions, check_number
from interp.lenses.reading import read_layers
from interp.lenses.remote import patch_elsewhere
from interp.passes import in_turn
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
    plan = PatchPlan.of(layers, latent_layers, patch, site, mapping, model.num_layers)
    prompts = PatchedPrompts.of(
        model, latents, plan.latent_layers, target_ids, target_positions, mapped=mapping is not None
    )
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
    for chosen, hidden, clean in _final_states(prompts, plan, batch_size):
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


def _final_states(
    prompts: PatchedPrompts, plan: PatchPlan, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """By batch: the examples; (layer, row, hidden), what patched prompts end with; (row, hidden), unpatched ones."""
    if not len(prompts):  # results of length 0
        width = prompts.model.hidden_size
        yield (
            [],
            torch.empty(len(plan.layers), 0, width, dtype=torch.float32, device="cpu"),
            torch.empty(0, width, dtype=torch.float32, device="cpu"),
        )
        return
    if plan.kind == "resid_post" and walk_fits(prompts.model, prompts.longest):
        for chosen in batches_alike(prompts.input_ids, prompts.positions, batch_size, len(plan.layers)):
            yield chosen, *_walked(prompts, plan, chosen)
        return
    for chosen in whole_batches(prompts.model, [len(ids) for ids in prompts.input_ids], batch_size):
        yield chosen, *_plain(prompts, plan, chosen)


def _walked(prompts: PatchedPrompts, plan: PatchPlan, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What `_plain` gives, of target prompts of one length that are patched at the same tokens, by a walk."""
    written = plan.by_layer(prompts.written(chosen, plan.mapping))
    hidden, clean = walk(
        prompts.model,
        prompts.ids(chosen),
        prompts.positions[chosen[0]],
        {layer: written[layer][None] for layer in plan.layers},
        layers=plan.layers,
        later=written if plan.patch == "from_layer" else None,
    )
    return hidden[:, 0], clean


def _plain(prompts: PatchedPrompts, plan: PatchPlan, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(layer, row, hidden) and (row, hidden): what the patched and the unpatched target prompts end with."""
    ids = [prompts.input_ids[example] for example in chosen]
    positions = [prompts.positions[example] for example in chosen]
    written = prompts.written(chosen, plan.mapping)
    hidden = [run_patched(prompts.model, ids, positions, plan.writes(layer, written)) for layer in plan.layers]
    return torch.stack(hidden), run_unpatched(prompts.model, ids)


def run_unpatched(model: StandardizedTransformer, ids: Sequence[Sequence[int]]) -> Tensor:
    """(row, hidden), what target prompts end with that nothing is written into, each run once."""
    distinct = list(dict.fromkeys(tuple(row) for row in ids))
    place = {row: index for index, row in enumerate(distinct)}
    return run_patched(model, distinct, [[0]] * len(distinct), [])[[place[tuple(row)] for row in ids]]


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

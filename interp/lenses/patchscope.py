"""The patchscope lens: a hidden state is written into another prompt's run, and the model says what is in it.

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102. With target prompts that translate, and with patching from
a layer onwards: Dumas et al., "Separating Tongue from Thought" (2025), arXiv 2411.08745.

Latents written after layers go through one walk up the layers (`interp.forward`). Other sites, and families that the
walk does not fit, are served the plain way, one traced forward pass of the whole target prompts for each layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp.activations import batches_by_length
from interp.errors import InterpError, nearest
from interp.forward import batches_alike, run_patched, walk, walk_fits
from interp.lenses.reading import check_lens_layers, read_layers
from interp.lenses.result import Floats, LensResult
from interp.readout import Groups, TokenGroups, reduce_logits
from interp.sites import HIDDEN_KINDS, Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Patch", "patchscope_lens"]

Patch = Literal["one_layer", "from_layer"]


@torch.no_grad()
def patchscope_lens(
    model: StandardizedTransformer,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    target_positions: Sequence[int],
    groups: Groups,
    *,
    layers: Sequence[int],
    patch: Patch = "one_layer",
    site: str = "resid_post",
    latent_layers: Sequence[int] | None = None,
    top_k: int = 5,
    batch_size: int = 64,
    reference: Tensor | None = None,
) -> LensResult:
    """Patchscope lens (Ghandeharioun et al. 2024): write latents into target prompts, read the next token.

    For each layer j the target prompt is run once, with the source's latent written over the target's own at one token:
    at layer j only (`one_layer`), or at j and every later layer, each with the latent of that same layer (`from_layer`,
    Dumas et al. 2025). What the model then predicts after the target prompt's last token is the reading of layer j.

    Arguments:
        model: the model.
        latents: (layer, example, hidden_size), what is written; any device and float dtype, the model's is used.
        target_ids: per example: token ids of its target prompt as the model is fed, unpadded.
        target_positions: per example: the token of the target prompt that is written, counted from 0 without padding.
        groups: per example, per group: token ids whose probability is summed.
        layers: the layers j, ascending.
        patch: `one_layer` or `from_layer`.
        site: kind of site that is written, a hidden state that each layer has (`interp.sites.HIDDEN_KINDS`).
        latent_layers: what the axis `layer` of `latents` stands for, ascending; None: `layers`. `one_layer` needs all
            of `layers` there, `from_layer` every layer from the first of `layers` to the model's last.
        top_k: how many top tokens are kept.
        batch_size: target prompts in a forward pass at most; memory does not depend on the number of examples.
        reference: (example, hidden_size), the residual stream after the model's last layer at the source token, which
            gives `surprisal` and `model_top_id`; None: not known.

    Returns:
        The lens over all examples, logarithms in nats; `baseline` is read after the unpatched target prompts.

    Raises:
        InterpError: shapes that do not fit, layers that the model or the latents do not have, a position outside its
            target prompt, token ids outside the vocabulary.
    """
    layers = check_lens_layers(layers, model.num_layers)
    plan = _plan(layers, latent_layers, patch, site, model.num_layers)
    _check_examples(model, latents, target_ids, target_positions, groups, reference, len(plan.latent_layers))
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
    padded_groups = TokenGroups.pad(groups, model.vocab_size)
    parts, order = [], []
    for chosen, hidden, clean in _final_states(model, latents, target_ids, target_positions, layers, plan, batch_size):
        rows = torch.tensor(chosen, dtype=torch.long)
        order += chosen
        batch_groups = padded_groups.rows(rows)
        parts.append(
            read_layers(
                model,
                hidden,
                batch_groups,
                layers=layers,
                top_k=top_k,
                reference=None if reference is None else reference[rows.to(reference.device)],
                baseline=_baseline(model, clean, batch_groups),
            )
        )
    return LensResult.concatenate(parts, order=order)


def _final_states(
    model: StandardizedTransformer,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    target_positions: Sequence[int],
    layers: tuple[int, ...],
    plan: _Plan,
    batch_size: int,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """By batch: the examples; (layer, row, hidden), what patched prompts end with; (row, hidden), unpatched ones."""
    if not target_ids:  # results of length 0
        yield [], torch.empty(len(layers), 0, model.hidden_size), torch.empty(0, model.hidden_size)
    batches = batches_by_length([len(ids) for ids in target_ids], batch_size)
    if target_ids and plan.kind == "resid_post":
        alike = batches_alike(target_ids, target_positions, batch_size, model.num_layers)
        if walk_fits(model):
            for chosen in alike:
                yield chosen, *_walked(model, latents, target_ids, target_positions, layers, plan, chosen)
            return
    for chosen in batches:
        yield chosen, *_plain(model, latents, target_ids, target_positions, layers, plan, chosen)


def _walked(
    model: StandardizedTransformer,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    target_positions: Sequence[int],
    layers: tuple[int, ...],
    plan: _Plan,
    chosen: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """What `_plain` gives, of target prompts of one length that are patched at one token, by a walk up the layers."""
    device = _device(model)
    prompts = list(dict.fromkeys(tuple(target_ids[example]) for example in chosen))
    ids = torch.tensor(prompts if len(prompts) == 1 else [list(target_ids[example]) for example in chosen])
    rows = torch.tensor(chosen, dtype=torch.long, device=latents.device)
    held = latents[:, rows].to(device=device, dtype=model.dtype)
    written = dict(zip(plan.latent_layers, held, strict=True))
    return walk(
        model,
        ids.to(device),
        target_positions[chosen[0]],
        written,
        layers=layers,
        from_layer=plan.patch == "from_layer",
    )


def _plain(
    model: StandardizedTransformer,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    target_positions: Sequence[int],
    layers: tuple[int, ...],
    plan: _Plan,
    chosen: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """(layer, row, hidden) and (row, hidden): what the patched and the unpatched target prompts end with."""
    ids = [target_ids[example] for example in chosen]
    positions = [target_positions[example] for example in chosen]
    rows = torch.tensor(chosen, dtype=torch.long, device=latents.device)
    held = latents[:, rows].to(device=_device(model), dtype=model.dtype)
    hidden = torch.stack([run_patched(model, ids, positions, plan.writes(layer, held)) for layer in layers])
    distinct = list(dict.fromkeys(tuple(row) for row in ids))
    place = {row: index for index, row in enumerate(distinct)}
    clean = run_patched(model, distinct, [0] * len(distinct), [])[[place[tuple(row)] for row in ids]]
    return hidden, clean


@dataclass(frozen=True)
class _Plan:
    """Which latents are written where, for each layer of the lens."""

    kind: str
    patch: Patch
    latent_layers: tuple[int, ...]

    def writes(self, layer: int, latents: Tensor) -> list[tuple[Site, Tensor]]:
        """The sites to write, in the order of a forward pass, with (row, hidden_size) each."""
        return [
            (Site(self.kind, held), latent)
            for held, latent in zip(self.latent_layers, latents, strict=True)
            if held == layer or (self.patch == "from_layer" and held > layer)
        ]


def _plan(
    layers: tuple[int, ...], latent_layers: Sequence[int] | None, patch: Patch, site: str, num_layers: int
) -> _Plan:
    if patch not in get_args(Patch):
        raise InterpError(f"patch: unknown {patch!r}.{nearest(patch, get_args(Patch))}")
    if site not in HIDDEN_KINDS:
        raise InterpError(
            f"site: expected a kind of site that each layer has, got {site!r}.{nearest(site, HIDDEN_KINDS)} What is "
            "patched is a hidden state (batch, position, hidden)."
        )
    held = layers if latent_layers is None else check_lens_layers(latent_layers, num_layers)
    needed = layers if patch == "one_layer" else range(layers[0], num_layers)
    missing = [layer for layer in needed if layer not in held]
    if missing:
        raise InterpError(
            f"patch {patch!r} of layers {list(layers)} needs latents of layers {list(needed)}, got none of {missing}. "
            "Collect those layers too, or choose other layers or patch='one_layer'."
        )
    return _Plan(site, patch, held)


def _check_examples(
    model: StandardizedTransformer,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    target_positions: Sequence[int],
    groups: Groups,
    reference: Tensor | None,
    num_latents: int,
) -> None:
    expected = (num_latents, len(target_ids), model.hidden_size)
    if tuple(latents.shape) != expected:
        raise InterpError(
            f"latents: expected shape (layer, example, hidden_size) = {expected}, got {tuple(latents.shape)}."
        )
    if reference is not None and tuple(reference.shape) != expected[1:]:
        raise InterpError(
            f"reference: expected shape (example, hidden_size) = {expected[1:]}, got {tuple(reference.shape)}."
        )
    for name, given in (("target_positions", target_positions), ("groups", groups)):
        if len(given) != len(target_ids):
            raise InterpError(f"{name}: expected one entry for each of {len(target_ids)} examples, got {len(given)}.")
    for example, (ids, position) in enumerate(zip(target_ids, target_positions, strict=True)):
        if not 0 <= position < len(ids):
            raise InterpError(
                f"target_positions: example {example} has {position}, expected a token of its target prompt, "
                f"0 to {len(ids) - 1}."
            )
        if min(ids) < 0 or max(ids) >= model.vocab_size:
            raise InterpError(
                f"target_ids: example {example} has ids {min(ids)} to {max(ids)}, the model's vocabulary is "
                f"0 to {model.vocab_size - 1}. Were they made with another model's tokenizer?"
            )


def _device(model: StandardizedTransformer) -> torch.device:
    return model.device or torch.device("cpu")


def _baseline(model: StandardizedTransformer, clean: Tensor, groups: TokenGroups) -> Floats:
    """(row, group), log-probability of the groups after the unpatched target prompts."""
    if not len(clean):
        return np.empty(groups.ids.shape[:2], dtype=np.float32)
    logits = model.readout(clean)
    return reduce_logits(logits, groups.to(logits.device), 1).log_prob.cpu().numpy()

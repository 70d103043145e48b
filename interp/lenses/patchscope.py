"""The patchscope lens: a hidden state is written into another prompt's run, and the model says what is in it.

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102. With target prompts that translate, and with patching from
a layer onwards: Dumas et al., "Separating Tongue from Thought" (2025), arXiv 2411.08745.

This module is the plain way, one traced forward pass of the whole target prompts for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import nnsight
import numpy as np
import torch
from torch import Tensor

from interp.activations import batches_by_length, left_padded
from interp.errors import InterpError, nearest
from interp.lenses.result import Floats, LensResult, check_lens_layers, read_layers
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
    batches = batches_by_length([len(ids) for ids in target_ids], batch_size) or [[]]
    parts = []
    for chosen in batches:
        rows = torch.tensor(chosen, dtype=torch.long)
        batch_groups = padded_groups.rows(rows)
        ids = [target_ids[example] for example in chosen]
        if not chosen:  # no examples at all: results of length 0
            hidden = torch.empty(len(layers), 0, model.hidden_size)
        else:
            positions = [target_positions[example] for example in chosen]
            batch_latents = latents[:, rows.to(latents.device)].to(device=_device(model), dtype=model.dtype)
            hidden = torch.stack([_run(model, ids, positions, plan.writes(layer, batch_latents)) for layer in layers])
        parts.append(
            read_layers(
                model,
                hidden,
                batch_groups,
                layers=layers,
                top_k=top_k,
                reference=None if reference is None else reference[rows.to(reference.device)],
                baseline=_baseline(model, ids, batch_groups),
            )
        )
    return LensResult.concatenate(parts, order=[example for batch in batches for example in batch])


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


def _run(
    model: StandardizedTransformer,
    target_ids: Sequence[Sequence[int]],
    positions: Sequence[int],
    writes: Sequence[tuple[Site, Tensor]],
) -> Tensor:
    """Run target prompts with latents written into them, up to the last layer and without the head.

    Arguments:
        model: the model.
        target_ids: token ids of each row's prompt, unpadded.
        positions: the token of each row that is written, counted without padding.
        writes: sites in the order of a forward pass, and what is written there, (row, hidden_size).

    Returns:
        (row, hidden_size), the residual stream after the last layer at each prompt's last token.
    """
    inputs = left_padded(target_ids, 0, _device(model))  # 0 is in every vocabulary, a pad token may not be
    longest = inputs["input_ids"].shape[1]
    padded_positions = [longest - len(ids) + position for ids, position in zip(target_ids, positions, strict=True)]
    rows, columns = torch.arange(len(target_ids)), torch.tensor(padded_positions)
    last = Site("resid_post", model.num_layers - 1)
    final: Tensor
    with model.trace(**inputs, use_cache=False) as tracer:
        for site, latent in writes:
            patched = model.read(site).clone()  # others may hold the tensor that the model made
            patched[rows.to(patched.device), columns.to(patched.device)] = latent.to(patched)
            model.write(site, patched)
        final = nnsight.save(model.read(last)[:, -1].clone())
        tracer.stop()
    return final


def _device(model: StandardizedTransformer) -> torch.device:
    return model.device or torch.device("cpu")


def _baseline(model: StandardizedTransformer, ids: Sequence[Sequence[int]], groups: TokenGroups) -> Floats:
    """(row, group), log-probability of the groups after the unpatched target prompts; equal prompts are run once."""
    distinct = list(dict.fromkeys(tuple(row) for row in ids))
    if not distinct:
        return np.empty(groups.ids.shape[:2], dtype=np.float32)
    hidden = _run(model, distinct, [0] * len(distinct), [])
    place = {row: index for index, row in enumerate(distinct)}
    logits = model.readout(hidden)[[place[tuple(row)] for row in ids]]
    return reduce_logits(logits, groups.to(logits.device), 1).log_prob.cpu().numpy()

"""Activations of many prompts: batches of similar length, gathered on the device, copied off it once a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from interp.errors import InterpError
from interp.sites import Site, check_collectable

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["batches_by_length", "collect", "left_padded"]


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Put prompts of similar length together, so that little padding is computed.

    Arguments:
        lengths: tokens of each prompt.
        batch_size: prompts in a batch at most.

    Returns:
        Row numbers by batch, shortest prompts first; a function of the lengths alone.
    """
    rows = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def left_padded(input_ids: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch as a model takes it, padded on the left, so that every prompt's last token is in the last column.

    Arguments:
        input_ids: token ids of each prompt, unpadded.
        pad_id: any id of the vocabulary; the mask hides it.
        device: where the tensors go.

    Returns:
        `input_ids`, `attention_mask` and `position_ids`, each (batch, length). Positions count from a prompt's own
        first token; without them a model with learned positions (GPT-2) would count the padding.
    """
    longest = max(len(ids) for ids in input_ids)
    ids = torch.full((len(input_ids), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(input_ids):
        ids[row, longest - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def collect(
    model: StandardizedTransformer,
    input_ids: Sequence[Sequence[int]],
    sites: Sequence[Site],
    positions: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Read sites of a model at chosen positions of many prompts.

    The model runs once per batch and stops after the last site that is asked for: what lies above, and the head unless
    `logits` is asked for, is not computed. How prompts are put into batches depends on their lengths alone.

    Arguments:
        model: the model.
        input_ids: token ids of each prompt exactly as they are fed, unpadded.
        sites: what is read, each once; any kind without a head axis.
        positions: for each prompt, indices into its own tokens, from 0; -1 stands for none. Prompts may have different
            numbers of them.
        batch_size: prompts in a forward pass at most.
        progress: called after each batch with the number of prompts that are done.

    Returns:
        By kind of site, a CPU tensor (layer, prompt, position, hidden) in the model's dtype. Layers are in the order of
        `sites` (one, for a kind without layers), prompts in the order given; `hidden` is the vocabulary for `logits`
        and the neurons for `mlp_post`.
        Where a prompt has no position (-1, or fewer than another prompt) it holds NaN.

    Raises:
        InterpError: no prompt, no site, a site twice or with heads, an empty prompt, a position outside its prompt, or
            layers whose MLPs differ in width, for `mlp_post`.
    """
    rows_of_kind = _checked(input_ids, sites, positions, batch_size)
    ordered = model.in_order(sites)  # a trace is read in the order of the forward pass
    width = max(len(row) for row in positions)
    table = torch.full((len(positions), width), -1, dtype=torch.long)
    for row, indices in enumerate(positions):
        table[row, : len(indices)] = torch.as_tensor(indices, dtype=torch.long)
    lengths = torch.tensor([len(ids) for ids in input_ids])
    pad_id = model.tokenizer.pad_token_id or 0
    # Weights that accelerate has offloaded lie on `meta`; its hooks then move the inputs to where they are needed.
    device = model.device if model.device is not None and model.device.type != "meta" else torch.device("cpu")

    out: dict[str, torch.Tensor] = {}
    done = 0
    with model.session():
        for batch in batches_by_length(lengths.tolist(), batch_size):
            inputs = left_padded([input_ids[row] for row in batch], pad_id, device)
            longest = inputs["input_ids"].shape[1]
            if (
                not model.takes_position_ids
            ):  # no positions at all (Bloom, MPT), only distances, which padding leaves alone
                del inputs["position_ids"]
            missing = (table[batch] < 0).to(device)
            padding = longest - lengths[batch]
            columns = (table[batch].clamp(min=0) + padding[:, None]).to(device)  # (batch, position)
            gathered: list[torch.Tensor] = []
            with model.trace(**inputs, use_cache=False) as tracer:
                for site in ordered:
                    gathered.append(_gather(model.read(site), columns, missing))
                tracer.stop()
            # One copy off the device for all sites. Kinds of different width lie behind each other in it.
            flat = torch.cat([values.to(gathered[0].device).flatten() for values in gathered]).cpu()
            parts = flat.split([values.numel() for values in gathered])
            for site, values, part in zip(ordered, gathered, parts, strict=True):
                layers = rows_of_kind[site.kind]
                if site.kind not in out:
                    shape = (len(layers), len(input_ids), width, values.shape[-1])
                    out[site.kind] = torch.full(shape, float("nan"), dtype=values.dtype)
                if values.shape[-1] != out[site.kind].shape[-1]:
                    raise InterpError(
                        f"{site} has {values.shape[-1]} numbers at a position, other layers have "
                        f"{out[site.kind].shape[-1]}: collect layers of one width at a time."
                    )
                out[site.kind][layers[site], batch] = part.reshape(values.shape).to(values.dtype)
            done += len(batch)
            if progress is not None:
                progress(done)
    return {kind: out[kind] for kind in rows_of_kind}


def _gather(hidden: torch.Tensor, columns: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
    """A copy of (batch, length, hidden) at (batch, position) columns: (batch, position, hidden), NaN where missing."""
    columns, missing = columns.to(hidden.device), missing.to(hidden.device)
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
    return hidden.detach()[rows, columns].masked_fill(missing[..., None], float("nan"))


def _checked(
    input_ids: Sequence[Sequence[int]], sites: Sequence[Site], positions: Sequence[Sequence[int]], batch_size: int
) -> dict[str, dict[Site, int]]:
    """Where each site goes: kind -> site -> index along the layer axis. Raises on what cannot be read."""
    if not input_ids or not sites:
        raise InterpError(f"expected prompts and sites, got {len(input_ids)} prompts and {len(sites)} sites.")
    if len(positions) != len(input_ids):
        raise InterpError(f"expected positions for {len(input_ids)} prompts, got {len(positions)}.")
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
    for row, (ids, indices) in enumerate(zip(input_ids, positions, strict=True)):
        if not len(ids):
            raise InterpError(f"prompt {row} has no tokens.")
        bad = [index for index in indices if not -1 <= index < len(ids)]
        if bad:
            raise InterpError(
                f"prompt {row} has {len(ids)} tokens, position {bad[0]} is none of them. Expected 0..{len(ids) - 1}, "
                "or -1 for none; `interp.positions` resolves positions that count from the end."
            )
    if not max(len(row) for row in positions):
        raise InterpError("expected at least one position in one prompt, got none.")
    check_collectable(sites)
    rows_of_kind: dict[str, dict[Site, int]] = {}
    for site in sites:
        rows = rows_of_kind.setdefault(site.kind, {})
        if site in rows:
            raise InterpError(f"site {site} is asked for twice.")
        rows[site] = len(rows)
    return rows_of_kind

"""The attention-object lens: attention receives a source's vectors at one token of a target prompt.

It is nnterp's `patch_object_attn_lens`. Where a patchscope writes what a token is, this writes only what attention
reads there, in a few layers in a row, and leaves the token's own stream alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.forward import (
    CleanRun,
    batches_alike,
    check_ready,
    receiving_fits,
    run_patched,
    stays_within,
    walk_receiving,
    whole_batches,
)
from interp.lenses.layer_windows import windows_of
from interp.lenses.reading import check_lens_layers, read_layers
from interp.lenses.result import LensResult
from interp.model.layout import sublayer_of
from interp.readout import Groups, TokenGroups
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["AttentionWindows", "attention_object_lens", "final_states"]


@dataclass(frozen=True)
class AttentionWindows:
    """In which layers attention receives other vectors, for each layer of the lens.

    Arguments:
        windows: layer of the lens -> the layers of its window.
        attending: those layers of any window that have attention, ascending: what latents are needed of.
    """

    windows: dict[int, range]
    attending: tuple[int, ...]

    @classmethod
    def of(
        cls, model: StandardizedTransformer, layers: Sequence[int] | None, num_layers: int | None
    ) -> AttentionWindows:
        """The windows of a lens.

        Arguments:
            model: the model.
            layers: the first layer of each, ascending; None: every layer.
            num_layers: how many layers; None: up to the last.

        Raises:
            InterpError: layers that the model does not have or not in order, no layer in a window, or none with
                attention.
        """
        check_ready(model)
        if num_layers is not None and num_layers < 1:
            raise InterpError(f"num_layers: expected at least 1, or None for all up to the last, got {num_layers}.")
        windows = windows_of(range(model.num_layers) if layers is None else layers, num_layers, model.num_layers)
        attending = [layer for layer in range(model.num_layers) if sublayer_of(model, "attention", layer) is not None]
        for window in windows.values():
            if not any(layer in window for layer in attending):
                raise InterpError(
                    f"layers: the layers {window.start} to {window.stop - 1} have no attention; of this model "
                    f"{attending or 'none'} have. Choose `layers` from which a window reaches one of them."
                )
        inside = {layer for window in windows.values() for layer in window}
        return cls(windows, tuple(layer for layer in attending if layer in inside))


@torch.no_grad()
def attention_object_lens(
    model: StandardizedTransformer,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    positions: Sequence[int],
    groups: Groups,
    *,
    num_layers: int | None = 5,
    layers: Sequence[int] | None = None,
    latent_layers: Sequence[int] | None = None,
    top_k: int = 5,
    batch_size: int = 64,
    reference: Tensor | None = None,
) -> LensResult:
    """Attention-object lens (nnterp's `patch_object_attn_lens`): attention receives a source's vectors at one token.

    For each layer j the target prompt is run once, and in the layers j to j + num_layers - 1 what attention receives at
    one token, after its norm, is what attention of that same layer receives at the source. So other tokens look at the
    source there, and the token itself looks around as the source would. The MLP keeps what it receives, also in
    parallel layers, where both read one tensor.

    Arguments:
        model: the model.
        latents: (layer, example, hidden_size), `attn_in` at the source; any device and float dtype.
        target_ids: per example: token ids of its target prompt as the model is fed, unpadded.
        positions: per example: the token of the target prompt, counted from 0 without padding.
        groups: per example, per group: token ids whose probability is summed.
        num_layers: in how many layers from j on, cut off at the model's last; None: in all of them.
        layers: the layers j, ascending; None: every layer.
        latent_layers: what the axis `layer` of `latents` stands for, ascending; None: every layer of the windows that
            has attention, which are all the layers of the model where `layers` is None. More than these may be given.
        top_k: how many top tokens are kept.
        batch_size: target prompts in a forward pass at most; memory does not depend on the number of examples.
        reference: (example, hidden_size), the residual stream after the model's last layer at the source token, which
            gives `surprisal` and `model_top_id`; None: not known.

    Returns:
        The lens over (example, layer), logarithms in nats; `baseline` is read after the unpatched target prompts, and
        `kl` is KL(unpatched || patched).

    Raises:
        InterpError: shapes that do not fit, layers that the model or the latents do not have, windows without
            attention, a position outside its target prompt, token ids outside the vocabulary.
    """
    plan = AttentionWindows.of(model, layers, num_layers)
    held = plan.attending if latent_layers is None else check_lens_layers(latent_layers, model.num_layers)
    missing = [layer for layer in plan.attending if layer not in held]
    if missing:
        raise InterpError(
            f"latent_layers: windows of {num_layers} layers from {list(plan.windows)} on need latents of layers "
            f"{list(plan.attending)}, got none of {missing}."
        )
    _check_examples(model, latents, target_ids, positions, groups, reference, len(held))
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
    padded = TokenGroups.pad(groups, model.vocab_size)
    needed = latents[[held.index(layer) for layer in plan.attending]]
    parts, order = [], []
    for chosen, hidden, clean in final_states(model, plan, needed, target_ids, positions, batch_size):
        rows = torch.tensor(chosen, dtype=torch.long)
        order += chosen
        parts.append(
            read_layers(
                model,
                torch.cat([hidden, clean[None]]),  # the last is what `kl` compares with
                padded.rows(rows),
                layers=(*plan.windows, model.num_layers),
                top_k=top_k,
                reference=None if reference is None else reference[rows.to(reference.device)],
            )
        )
    whole = LensResult.concatenate(parts, order=order)
    return replace(whole.select(layer=list(plan.windows)), baseline=whole.log_prob[:, -1])


def final_states(
    model: StandardizedTransformer,
    plan: AttentionWindows,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    positions: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """What target prompts end with, batch by batch.

    Arguments:
        model: the model.
        plan: the windows.
        latents: (layer of `plan.attending`, example, hidden).
        target_ids, positions, batch_size: as in `attention_object_lens`.

    Yields:
        The examples of the batch; (window, row, hidden), the residual stream after the last layer at the last token;
        (row, hidden), the same of the unpatched prompts.
    """
    if not target_ids:  # results of length 0
        yield [], torch.empty(len(plan.windows), 0, model.hidden_size), torch.empty(0, model.hidden_size)
        return
    lengths = [len(ids) for ids in target_ids]
    if receiving_fits(model) and stays_within(model, lengths):
        batches, run = batches_alike(target_ids, positions, batch_size, len(plan.windows)), _walked
    else:
        batches, run = whole_batches(model, lengths, batch_size), _plain
    for chosen in batches:
        rows = torch.tensor(chosen, dtype=torch.long, device=latents.device)
        held = latents[:, rows].to(device=model.device, dtype=model.dtype)
        received = dict(zip(plan.attending, held, strict=True))
        ids = [list(target_ids[example]) for example in chosen]
        yield chosen, *run(model, plan, received, ids, [positions[example] for example in chosen])


def _walked(
    model: StandardizedTransformer,
    plan: AttentionWindows,
    received: dict[int, Tensor],
    ids: list[list[int]],
    positions: list[int],
) -> tuple[Tensor, Tensor]:
    """What `_plain` gives, of target prompts of one length that are changed at one token, by a walk up the layers."""
    alike = all(own == ids[0] for own in ids)
    clean = CleanRun.of(model, torch.tensor(ids[:1] if alike else ids, device=model.device), positions[0])
    hidden = walk_receiving(clean, list(plan.windows.values()), received)
    return hidden, clean.hidden(model.num_layers - 1)[:, -1].expand(len(ids), -1)


def _plain(
    model: StandardizedTransformer,
    plan: AttentionWindows,
    received: dict[int, Tensor],
    ids: list[list[int]],
    positions: list[int],
) -> tuple[Tensor, Tensor]:
    """The same by a traced forward pass of the whole target prompts for each window."""
    hidden = [
        run_patched(
            model, ids, positions, [(Site("attn_in", layer), received[layer]) for layer in window if layer in received]
        )
        for window in plan.windows.values()
    ]
    return torch.stack(hidden), run_patched(model, ids, [0] * len(ids), [])


def _check_examples(
    model: StandardizedTransformer,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    positions: Sequence[int],
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
    for name, given in (("positions", positions), ("groups", groups)):
        if len(given) != len(target_ids):
            raise InterpError(f"{name}: expected one entry for each of {len(target_ids)} examples, got {len(given)}.")
    for example, (ids, position) in enumerate(zip(target_ids, positions, strict=True)):
        if not 0 <= position < len(ids):
            raise InterpError(
                f"positions: example {example} has {position}, expected a token of its target prompt, 0 to "
                f"{len(ids) - 1}. `interp.positions` resolves positions that count from the end."
            )
        if min(ids) < 0 or max(ids) >= model.vocab_size:
            raise InterpError(
                f"target_ids: example {example} has ids {min(ids)} to {max(ids)}, the model's vocabulary is "
                f"0 to {model.vocab_size - 1}. Were they made with another model's tokenizer?"
            )

"""The attention-object lens: attention receives a source's vectors at one token of a target prompt, or at several.

It is nnterp's `patch_object_attn_lens`. Where a patchscope writes what a token is, this writes only what attention
reads there, in a few layers in a row, and leaves the token's own stream alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.batching import batches_alike
from interp.errors import InterpError
from interp.forward import (
    CleanRun,
    check_ready,
    receiving_fits,
    run_patched,
    stays_within,
    walk_receiving,
    whole_batches,
)
from interp.lenses.layer_windows import windows_of
from interp.lenses.patching import PatchedPrompts, TargetPositions
from interp.lenses.patchscope import check_lens_inputs, run_unpatched
from interp.lenses.reading import read_layers
from interp.model.resolve import sublayer_of
from interp.passes import in_turn
from interp.readout import Groups, TokenGroups
from interp.results import LensResult
from interp.sites import Site
from interp.sites.parsing import check_lens_layers

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


@in_turn
@torch.no_grad()
def attention_object_lens(
    model: StandardizedTransformer,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    positions: TargetPositions,
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
    parallel layers, where both read one tensor. Several tokens receive theirs at once, in the same run.

    Arguments:
        model: the model.
        latents: (layer, example, hidden_size), `attn_in` at the source; or (layer, example, position, hidden_size)
            where several tokens receive. Any device and float dtype, the model's is used.
        target_ids: per example: token ids of its target prompt as the model is fed, unpadded.
        positions: per example: the token of the target prompt that receives, counted from 0 without padding; or
            several that receive at once, equally many in every example.
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
    prompts = PatchedPrompts.of(model, latents, held, target_ids, positions, mapped=False, name="positions")
    check_lens_inputs(prompts, groups, reference, batch_size)
    padded = TokenGroups.pad(groups, model.vocab_size)
    parts, order = [], []
    for chosen, hidden, clean in final_states(prompts.at(plan.attending), plan, batch_size):
        rows = torch.tensor(chosen, dtype=torch.long, device="cpu")
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
    prompts: PatchedPrompts, plan: AttentionWindows, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """What target prompts end with, batch by batch.

    Arguments:
        prompts: the target prompts, and what attention of the layers `plan.attending` receives.
        plan: the windows.
        batch_size: target prompts in a forward pass at most.

    Yields:
        The examples of the batch; (window, row, hidden), the residual stream after the last layer at the last token;
        (row, hidden), the same of the unpatched prompts.
    """
    windows = list(plan.windows.values())
    if not len(prompts):  # results of length 0
        width = prompts.model.hidden_size
        yield (
            [],
            torch.empty(len(windows), 0, width, dtype=torch.float32, device="cpu"),
            torch.empty(0, width, dtype=torch.float32, device="cpu"),
        )
        return
    if receiving_fits(prompts.model, prompts.longest) and stays_within(
        prompts.model, [len(ids) for ids in prompts.input_ids]
    ):
        batches, run = batches_alike(prompts.input_ids, prompts.positions, batch_size, len(windows)), _walked
    else:
        batches, run = whole_batches(prompts.model, [len(ids) for ids in prompts.input_ids], batch_size), _plain
    for chosen in batches:
        received = dict(zip(prompts.layers, prompts.written(chosen, None), strict=True))
        yield chosen, *run(prompts, windows, received, chosen)


def _walked(
    prompts: PatchedPrompts, windows: Sequence[range], received: dict[int, Tensor], chosen: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """What `_plain` gives, of target prompts of one length that are changed at the same tokens, by a walk."""
    positions = prompts.positions[chosen[0]]
    start = min(positions)
    clean = CleanRun.of(prompts.model, prompts.ids(chosen), start)
    hidden = walk_receiving(clean, windows, received, [position - start for position in positions])
    return hidden, clean.hidden(prompts.model.num_layers - 1)[:, -1].expand(len(chosen), -1)


def _plain(
    prompts: PatchedPrompts, windows: Sequence[range], received: dict[int, Tensor], chosen: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """(window, row, hidden) and (row, hidden), by a traced forward pass of whole target prompts for each window."""
    ids = [prompts.input_ids[example] for example in chosen]
    positions = [prompts.positions[example] for example in chosen]
    hidden = []
    for window in windows:
        writes = [(Site("attn_in", layer), received[layer]) for layer in window if layer in received]
        hidden.append(run_patched(prompts.model, ids, positions, writes))
    return torch.stack(hidden), run_unpatched(prompts.model, ids)

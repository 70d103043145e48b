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

from interp.errors import InterpError
from interp.forward import check_ready
from interp.lenses.patchscope import check_lens_inputs
from interp.lenses.reading import read_layers, windows_of
from interp.model.resolve import sublayer_of
from interp.passes import in_turn
from interp.patching import CleanRun, PatchedPrompts, TargetPositions, receiving_fits, run_patched, walk_receiving
from interp.patching.run import Ends, EndsPlan, run
from interp.readout import Groups, TokenGroups
from interp.results import LensResult
from interp.sites import Site
from interp.sites.parsing import check_lens_layers

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["AttentionInputPlan", "AttentionWindows", "attention_object_lens"]


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
    windows = AttentionWindows.of(model, layers, num_layers)
    held = windows.attending if latent_layers is None else check_lens_layers(latent_layers, model.num_layers)
    missing = [layer for layer in windows.attending if layer not in held]
    if missing:
        raise InterpError(
            f"latent_layers: windows of {num_layers} layers from {list(windows.windows)} on need latents of layers "
            f"{list(windows.attending)}, got none of {missing}."
        )
    prompts = PatchedPrompts.of(model, latents, held, target_ids, positions, mapped=False, name="positions")
    check_lens_inputs(prompts, groups, reference, batch_size)
    padded = TokenGroups.pad(groups, model.vocab_size)
    parts, order = [], []
    plan = AttentionInputPlan(prompts.at(windows.attending), windows)
    for chosen, (hidden, clean) in run(plan, batch_size):
        rows = torch.tensor(chosen, dtype=torch.long, device="cpu")
        order += chosen
        parts.append(
            read_layers(
                model,
                torch.cat([hidden, clean[None]]),  # the last is what `kl` compares with
                padded.rows(rows),
                layers=(*windows.windows, model.num_layers),
                top_k=top_k,
                reference=None if reference is None else reference[rows.to(reference.device)],
            )
        )
    whole = LensResult.concatenate(parts, order=order)
    return replace(whole.select(layer=list(windows.windows)), baseline=whole.log_prob[:, -1])


@dataclass(frozen=True)
class AttentionInputPlan(EndsPlan):
    """Attention that receives other vectors; entries are windows.

    Arguments:
        prompts: the target prompts, and what attention of the layers `windows.attending` receives.
        windows: in which layers.
    """

    prompts: PatchedPrompts
    windows: AttentionWindows

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
        return (len(self.windows.windows),)

    def fits(self) -> bool:
        return receiving_fits(self.model, self.longest)

    def fast(self, rows: list[int]) -> Iterator[Ends]:
        positions = self.positions[rows[0]]
        clean = CleanRun.of(self.model, self.prompts.ids(rows), min(positions))
        columns = [position - clean.start for position in positions]
        hidden = walk_receiving(clean, list(self.windows.windows.values()), self._received(rows), columns)
        yield Ends(hidden, clean.ends(len(rows)))

    def plain(self, rows: list[int]) -> Iterator[Tensor]:
        ids, positions = [self.input_ids[row] for row in rows], [self.positions[row] for row in rows]
        received = self._received(rows)
        hidden = []
        for window in self.windows.windows.values():
            writes = [(Site("attn_in", layer), received[layer]) for layer in window if layer in received]
            hidden.append(run_patched(self.model, ids, positions, writes))
        yield torch.stack(hidden)

    def _received(self, rows: Sequence[int]) -> dict[int, Tensor]:
        """Layer -> (row, position, hidden)."""
        return dict(zip(self.prompts.layers, self.prompts.written(rows, None), strict=True))

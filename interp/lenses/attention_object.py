"""The attention-object lens: what does the model do where attention meets a source's vectors at one token?

Where a patchscope writes what a token is, this writes only what attention reads there, in a few layers in a row, and
leaves the token's own stream alone: other tokens look at the source, and the token itself looks around as the source
would. In plain nnsight, for received (layer, hidden_size), what attention of each layer receives at the source:

    log_prob = {}
    for first in layers:
        with model.trace(target_prompt):
            for layer in range(first, min(first + window, model.num_layers)):
                model.attentions_input[layer][:, position] = received[layer]
            log_prob[first] = model.logits[:, -1].log_softmax(-1)

Written in place, that reaches the MLP too in parallel layers (GPT-J, Cohere), where both read one tensor; the lens does
not. It is nnterp's `patch_object_attn_lens`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.forward import check_ready
from interp.lenses.patchscope import check_lens_inputs
from interp.lenses.patchscope_inputs import Part, PatchscopeInputs, TargetPositions, TargetPrompts
from interp.lenses.reading import Positions, Targets, read_layers, windows_of
from interp.lenses.sources import Latents, SourcePrompts
from interp.model.resolve import sublayer_of
from interp.passes import in_turn
from interp.patching import CleanRun, PatchedPrompts, receiving_fits, run_patched, walk_receiving
from interp.patching.run import Ends, EndsPlan, run
from interp.readout import TokenGroups
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
    def of(cls, model: StandardizedTransformer, layers: Sequence[int] | None, window: int | None) -> AttentionWindows:
        """The windows of a lens.

        Arguments:
            model: the model.
            layers: the first layer of each, ascending; None: every layer.
            window: how many layers; None: up to the last.

        Raises:
            InterpError: layers that the model does not have or not in order, no layer in a window, or none with
                attention.
        """
        check_ready(model)
        windows = windows_of(range(model.num_layers) if layers is None else layers, window, model.num_layers)
        attending = [layer for layer in range(model.num_layers) if sublayer_of(model, "attention", layer) is not None]
        for each in windows.values():
            if not any(layer in each for layer in attending):
                raise InterpError(
                    f"layers: the layers {each.start} to {each.stop - 1} have no attention; of this model "
                    f"{attending or 'none'} have. Choose `layers` from which a window reaches one of them."
                )
        inside = {layer for each in windows.values() for layer in each}
        return cls(windows, tuple(layer for layer in attending if layer in inside))


@torch.no_grad()
def attention_object_lens(
    model: StandardizedTransformer,
    source: SourcePrompts | Latents,
    target_prompts: TargetPrompts,
    target_positions: TargetPositions | None = "last",
    targets: Targets | None = None,
    *,
    images: Any = None,
    source_positions: Positions = "last",
    window: int | None = 5,
    layers: Sequence[int] | None = None,
    policy: str = "first_token",
    top_k: int = 5,
    batch_size: int = 64,
    batch_tokens: int | None = None,
) -> LensResult:
    """Attention-object lens (nnterp's `patch_object_attn_lens`): attention receives a source's vectors at one token.

    For each layer j the target prompt is run once, and in the layers j to j + window - 1 what attention receives at one
    token, after its norm, is what attention of that same layer receives at the source. So other tokens look at the
    source there, and the token itself looks around as the source would. The MLP keeps what it receives, also in
    parallel layers, where both read one tensor. Several tokens receive theirs at once, in the same run.

    Arguments:
        model: the model.
        source: source prompts, whose `attn_in` is read; or `Latents`, `attn_in` at the source of every layer of the
            windows that has attention. See `patchscope_lens`.
        target_prompts, targets, images, source_positions, policy, top_k, batch_tokens: as in `patchscope_lens`.
        target_positions: the token of the target prompt that receives, or several, as in `patchscope_lens`; None: its
            placeholder.
        window: in how many layers from j on, cut off at the model's last; None: in all of them.
        layers: the layers j, ascending; None: every layer.
        batch_size: target prompts in a forward pass at most; memory does not depend on the number of examples.

    Returns:
        The lens over (example, layer), logarithms in nats; `baseline` is read after the unpatched target prompts, and
        `kl` is KL(unpatched || patched). `surprisal` and `model_top_id` go by what the model says at the (last) source
        token.

    Raises:
        InterpError: as `patchscope_lens` does, or windows without attention.
    """
    windows = AttentionWindows.of(model, layers, window)
    given = PatchscopeInputs.of(
        model, source, target_prompts, target_positions, images=images, source_positions=source_positions,
        targets=targets, policy=policy, batch_tokens=batch_tokens,
    )  # fmt: skip
    lens = partial(_of_part, model, windows=windows, top_k=top_k, batch_size=batch_size)
    return given.results("attn_in", windows.attending, lens)


@in_turn
def _of_part(
    model: StandardizedTransformer, part: Part, *, windows: AttentionWindows, top_k: int, batch_size: int
) -> LensResult:
    """The lens of examples whose latents are there."""
    check_lens_layers(part.layers, model.num_layers)
    missing = [layer for layer in windows.attending if layer not in part.layers]
    if missing:
        raise InterpError(
            f"source: the windows from layers {list(windows.windows)} on need latents of layers "
            f"{list(windows.attending)}, got none of {missing}."
        )
    prompts = part.prompts(model)
    check_lens_inputs(prompts, part.groups, part.reference, batch_size)
    padded = TokenGroups.pad(part.groups, model.vocab_size)
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
                reference=part.known(rows),
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

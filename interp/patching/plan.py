"""What patchscopes write where: latents, target prompts and their positions, checked and taken in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from interp.errors import InterpError, nearest
from interp.forward import check_ready
from interp.model.fed import check_fed
from interp.patching.fits import walk_fits
from interp.patching.patched_runs import run_patched, walk
from interp.patching.run import Ends, EndsPlan, Found, Plan
from interp.prompts.given import token_ids
from interp.sites import HIDDEN_KINDS, Site
from interp.sites.parsing import check_lens_layers

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer
    from interp.translators.affine_maps import LatentMap

__all__ = [
    "LayersPlan",
    "Patch",
    "PatchPlan",
    "PatchedPrompts",
    "TargetPositions",
    "check_held",
    "check_number",
    "check_patch",
    "held_layers",
]

Patch = Literal["one_layer", "from_layer"]
TargetPositions = Sequence[int] | Sequence[Sequence[int]]
"""Per example: the token that is written, or several that are written at once, equally many in every example."""


@dataclass(frozen=True)
class PatchedPrompts:
    """Target prompts, the tokens of each that are written, and what is written there.

    Arguments:
        model: the model that runs them.
        latents: (layer, example, position, hidden), of the model that they come from.
        layers: what the first axis stands for.
        input_ids: per example: token ids, unpadded.
        positions: per example: the tokens that are written.
    """

    model: StandardizedTransformer
    latents: Tensor
    layers: tuple[int, ...]
    input_ids: Sequence[Sequence[int]]
    positions: list[tuple[int, ...]]

    @classmethod
    def of(
        cls,
        model: StandardizedTransformer,
        latents: Tensor,
        layers: Sequence[int],
        target_ids: Sequence[Sequence[int]],
        target_positions: TargetPositions,
        *,
        mapped: bool,
    ) -> PatchedPrompts:
        """The same, checked.

        Arguments:
            latents: (layer, example, hidden), or (layer, example, position, hidden) where several tokens are written.
            mapped: whether a mapping turns them into the model's, so that they may have another width.

        Raises:
            InterpError: shapes that do not fit, a position outside its target prompt, ids outside the vocabulary.
        """
        check_ready(model)
        target_ids = token_ids(target_ids, "target_prompts")
        positions = [tuple(map(int, each)) if isinstance(each, Iterable) else (int(each),) for each in target_positions]
        counts = sorted(set(map(len, positions))) or list(latents.shape[2:3])
        several = latents.dim() == 4 or (bool(positions) and counts != [1])
        if several and (len(counts) > 1 or counts == [0]):
            raise InterpError(
                f"target_positions: expected equally many tokens in every example, at least one, got {counts}."
            )
        _check_shape(
            latents,
            (len(layers), len(target_ids), *(counts if several else ())),
            latents.shape[-1] if mapped else model.hidden_size,
        )
        check_number("target_positions", target_positions, len(target_ids))
        _check_prompts(model, target_ids, positions)
        return cls(model, latents if several else latents[:, :, None], tuple(layers), target_ids, positions)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest target prompt."""
        return max(map(len, self.input_ids), default=0)

    def at(self, layers: Sequence[int]) -> PatchedPrompts:
        """The same with the latents of some of the layers."""
        if tuple(layers) == self.layers:
            return self
        return replace(self, latents=self.latents[[self.layers.index(layer) for layer in layers]], layers=tuple(layers))

    @property
    def device(self) -> torch.device:
        """Where the prompts are fed."""
        return self.model.device or torch.device("cpu")

    def written(self, examples: Sequence[int], mapping: LatentMap | None) -> Tensor:
        """(layer, row, position, hidden), what is written in some examples, as the model has it.

        Arguments:
            examples: which.
            mapping: turns the latents into the model's; None: they are.

        Raises:
            InterpError: a mapping gives something else.
        """
        rows = torch.tensor(examples, dtype=torch.long, device=self.latents.device)
        latents = self.latents[:, rows]
        if mapping is not None:
            mapped = mapping(latents.flatten(1, 2), self.layers)
            expected = (len(self.layers), latents.shape[1] * latents.shape[2], self.model.hidden_size)
            if tuple(mapped.shape) != expected:
                raise InterpError(
                    f"mapping: expected (layer, row, hidden_size) = {expected} of the target model, got "
                    f"{tuple(mapped.shape)}."
                )
            latents = mapped.unflatten(1, latents.shape[1:3])
        return latents.to(device=self.device, dtype=self.model.dtype)

    def ids(self, examples: Sequence[int]) -> Tensor:
        """(row, length), the target prompts of examples of one length; (1, length) where all are the same."""
        prompts = list(dict.fromkeys(tuple(self.input_ids[example]) for example in examples))
        fed = prompts if len(prompts) == 1 else [list(self.input_ids[example]) for example in examples]
        return torch.tensor(fed, device=self.device)


@dataclass(frozen=True)
class PatchPlan(Plan[Found]):
    """Which latents are written into which prompts, for each layer that is asked for.

    Arguments:
        prompts: the target prompts, with latents of some layers.
        kind: the kind of site.
        patch: at one layer, or from it on.
        layers: those that are asked for, ascending.
        mapping: turns the latents into what is written; None: they are written as they are.
    """

    prompts: PatchedPrompts
    kind: str
    patch: Patch
    layers: tuple[int, ...]
    mapping: LatentMap | None

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
    def num_runs(self) -> int:
        return len(self.layers)

    def writes(self, layer: int, latents: Tensor) -> list[tuple[Site, Tensor]]:
        """The sites to write for one layer, in the order of a forward pass, with (row, position, hidden) each."""
        return [
            (Site(self.kind, held), latent)
            for held, latent in zip(self.prompts.layers, latents, strict=True)
            if held == layer or (self.patch == "from_layer" and held > layer)
        ]

    def written(self, rows: Sequence[int]) -> dict[int, Tensor]:
        """Layer -> (row, position, hidden), what is written into some prompts."""
        return dict(zip(self.prompts.layers, self.prompts.written(rows, self.mapping), strict=True))


class LayersPlan(PatchPlan[Ends], EndsPlan):
    """Every layer by itself, each run read at its end; entries are layers."""

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


def held_layers(
    layers: Sequence[int], latent_layers: Sequence[int] | None, patch: Patch, kind: str, num_layers: int
) -> tuple[int, ...]:
    """The layers that there are latents of, checked: all that are written among them.

    Arguments:
        layers: those that are asked for, ascending.
        latent_layers: those that there are latents of, ascending; None: the same.
        patch, kind: as in `PatchPlan`.
        num_layers: of the model.

    Raises:
        InterpError: layers that the model or the latents do not have, an unknown patch or kind of site.
    """
    layers = check_lens_layers(layers, num_layers)
    check_patch(patch, kind)
    held = layers if latent_layers is None else check_lens_layers(latent_layers, num_layers)
    check_held(patch, layers, layers if patch == "one_layer" else range(layers[0], num_layers), held)
    return held


def check_patch(patch: str, kind: str) -> None:
    """Raises InterpError on an unknown way to patch, or a kind of site that not every layer has."""
    if patch not in get_args(Patch):
        raise InterpError(f"patch: unknown {patch!r}.{nearest(patch, get_args(Patch))}")
    if kind not in HIDDEN_KINDS:
        raise InterpError(
            f"site: expected a kind of site that each layer has, got {kind!r}.{nearest(kind, HIDDEN_KINDS)} What is "
            "patched is a hidden state (batch, position, hidden)."
        )


def check_held(patch: str, layers: Sequence[int], needed: Sequence[int], held: Sequence[int]) -> None:
    """Raises InterpError where there are no latents of a layer whose own are written."""
    missing = [layer for layer in needed if layer not in held]
    if missing:
        raise InterpError(
            f"patch {patch!r} of layers {list(layers)} needs latents of layers {list(needed)}, got none of {missing}. "
            "Collect those layers too, or choose other layers or patch='one_layer'."
        )


def check_number(name: str, given: Sequence[object], examples: int) -> None:
    """Raises InterpError where there is not one entry an example."""
    if len(given) != examples:
        raise InterpError(f"{name}: expected one entry for each of {examples} examples, got {len(given)}.")


def _check_shape(latents: Tensor, leading: tuple[int, ...], width: int) -> None:
    expected, given = (*leading, width), tuple(latents.shape)
    if given == expected:
        return
    axes = "(layer, example, position, hidden_size)" if len(leading) == 3 else "(layer, example, hidden_size)"
    remedy = " Latents of another model need a `mapping` to this one's width." if given[:-1] == leading else ""
    raise InterpError(f"latents: expected shape {axes} = {expected}, got {given}.{remedy}")


def _check_prompts(
    model: StandardizedTransformer,
    target_ids: Sequence[Sequence[int]],
    positions: Sequence[tuple[int, ...]],
) -> None:
    for example, (ids, own) in enumerate(zip(target_ids, positions, strict=True)):
        outside = [position for position in own if not 0 <= position < len(ids)]
        if outside or len(set(own)) < len(own):
            given = f"{outside[0]}, expected a token" if outside else f"{list(own)}, expected different tokens"
            raise InterpError(
                f"target_positions: example {example} has {given} of its target prompt, 0 to {len(ids) - 1}."
            )
    check_fed(model, target_ids, "target_prompts")

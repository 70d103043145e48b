"""The hidden states that a lens reads: from `activations.zarr`, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError, nearest
from interp.sites import HIDDEN_KINDS
from pipeline.store import Store

__all__ = ["Latents", "find_last", "find_latents"]


@dataclass(frozen=True)
class Latents:
    """Hidden states of one kind of site at one position, read from the store as they are needed.

    Arguments:
        store: `activations.zarr`.
        kind: kind of site.
        layers: the layers that are read, ascending.
        position: index along the store's position axis.
    """

    store: Store
    kind: str
    layers: tuple[int, ...]
    position: int

    def read(self, sources: Sequence[Sequence[int]]) -> Tensor:
        """The latents of some examples, averaged over the sources of each.

        Arguments:
            sources: per example: rows of `prompts`, at least one.

        Returns:
            (layer, example, hidden) float32.
        """
        rows = sorted({row for example in sources for row in example})
        held: list[int] = self.store.attributes["sites"][self.kind]
        wanted = [held.index(layer) for layer in self.layers]
        values = self.store.read(self.kind, layer=wanted, prompt=rows, position=self.position)
        states = torch.from_numpy(values.astype(np.float32))  # (layer, row, hidden)
        place = {row: index for index, row in enumerate(rows)}
        return torch.stack([states[:, [place[row] for row in example]].mean(dim=1) for example in sources], dim=1)


def find_latents(
    name: str, store: Store, kind: str, position: str, layers: Sequence[int], sources: Sequence[Sequence[int]]
) -> Latents:
    """Find a lens's hidden states in the store.

    Arguments:
        name: of the lens, for messages.
        store: `activations.zarr`.
        kind: kind of site.
        position: one of the store's position names.
        layers: layers that are needed.
        sources: per example: rows of `prompts` that are needed.

    Raises:
        InterpError: the kind, the position or a layer was not collected, or a prompt has no token at the position.
    """
    sites: dict[str, list[int | None]] = store.attributes["sites"]
    names: list[str] = store.attributes["position_names"]
    if kind not in HIDDEN_KINDS:
        raise InterpError(
            f"lens.{name}.site: expected a kind of site that every layer has, got {kind!r}."
            f"{nearest(kind, HIDDEN_KINDS)} A lens reads hidden states (batch, position, hidden)."
        )
    if kind not in sites:
        raise InterpError(
            f"lens.{name}.site: {kind!r} was not collected.{nearest(kind, sites)} Add '{kind}.*' to collect.sites."
        )
    if position not in names:
        raise InterpError(
            f"lens.{name}: position {position!r} was not collected.{nearest(position, names)} "
            "Add it to collect.positions."
        )
    missing = [layer for layer in layers if layer not in sites[kind]]
    if missing:
        raise InterpError(
            f"lens.{name}: needs {kind} of layers {missing}, which were not collected; there are layers {sites[kind]}. "
            f"Choose lens.{name}.layers among them, or set collect.sites to '{kind}.*'."
        )
    found = Latents(store, kind, tuple(layers), names.index(position))
    resolved = store.static("positions")[:, found.position]
    absent = sorted({row for example in sources for row in example if resolved[row] < 0})
    if absent:
        raise InterpError(
            f"lens.{name}: position {position!r}: prompt {absent[0]} has no such token ({len(absent)} prompts have "
            "none). Choose a position that every prompt has, e.g. last."
        )
    return found


def find_last(store: Store, position: str, num_layers: int) -> Latents | None:
    """The residual stream after the last layer at a position, from which the model's own output follows.

    Returns:
        None where it was not collected.
    """
    last = num_layers - 1
    if position not in store.attributes["position_names"] or last not in store.attributes["sites"].get(
        "resid_post", []
    ):
        return None
    return Latents(store, "resid_post", (last,), store.attributes["position_names"].index(position))

"""What a lens puts collected states through before they are written or read out, from the stage `tune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.translators import LatentMap, TunedLens
from interp.translators.affine_maps import AffineMap, AffinePairs
from pipeline.config.lens import LensConfig
from pipeline.config.lens_reads import mapping_of
from pipeline.stages.affine_maps import load_affine

__all__ = ["TUNED_LENS", "Mapping", "find_mapping"]

TUNED_LENS = "tuned_lens"  # the artifact of the stage `tune`


@dataclass(frozen=True)
class Mapping:
    """A mapping as the lens's config names it.

    Arguments:
        kind: one of `MAPPINGS`.
        to_one: from each source layer to one layer; None: there is none, or it is `pairs`.
        pairs: from each source layer to each target layer; None: it is not `affine_target`.
        told: what the store says of it: `kind`, and what it was made from.
    """

    kind: str
    to_one: LatentMap | None = None
    pairs: AffinePairs | None = None
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def any(self) -> LatentMap | AffinePairs | None:
        """What a grid takes."""
        return self.pairs or self.to_one


def find_mapping(
    name: str,
    config: LensConfig,
    model: StandardizedTransformer,
    layers: Sequence[int],
    target_layers: Sequence[int] | None = None,
) -> Mapping:
    """The mapping of a lens, read from `tuned_lens/`.

    Arguments:
        name: of the lens, for messages.
        config: its config.
        model: the run's.
        layers: the layers whose states it maps.
        target_layers: where a grid writes them; None: the lens is none.

    Raises:
        InterpError: there is no such mapping, it is another model's, or it lacks a layer.
    """
    kind = mapping_of(config)
    if kind == "identity":
        return Mapping(kind, told={"kind": kind})
    if kind == "tuned":
        lens = TunedLens.load(TUNED_LENS, model)
        _check(name, "translator of", "the tuned lens", layers, (*lens.layers, model.num_layers - 1))
        return Mapping(kind, to_one=lens.as_map(), told={"kind": kind, **lens.config()})
    maps, fitted = load_affine(TUNED_LENS, model)
    _check(name, "map from", f"{TUNED_LENS}/", layers, maps.layers)
    told = {"kind": kind, **fitted}
    if kind == "affine_last":
        to_last = maps if isinstance(maps, AffineMap) else maps.to_layer(model.num_layers - 1)
        return Mapping(kind, to_one=to_last, told=told)
    if isinstance(maps, AffineMap) or target_layers is None:
        found = "maps to the last layer alone" if isinstance(maps, AffineMap) else "no target layers to map to"
        raise InterpError(
            f"lens.{name}.mapping: affine_target needs a grid, and maps between all layers; there are {found}. Set "
            "tune.affine=pairs, or choose affine_last."
        )
    _check(name, "map to", f"{TUNED_LENS}/", target_layers, maps.target_layers)
    return Mapping(kind, pairs=maps, told=told)


def _check(name: str, what: str, where: str, layers: Sequence[int], known: Sequence[int]) -> None:
    missing = [layer for layer in layers if layer not in known]
    if missing:
        raise InterpError(
            f"lens.{name}.mapping: {where} has no {what} layers {missing}, only {list(known)}. Choose among them, or "
            "make more (tune.layers, tune.affine_layers)."
        )

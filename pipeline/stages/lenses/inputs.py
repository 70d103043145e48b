"""What a lens is given: the artifacts of its run and the model, and from them the states that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.sites import parse_layers
from pipeline.config.lens import LensConfig
from pipeline.config.lens_reads import Reads, reads_of
from pipeline.stages.lenses.examples import Examples
from pipeline.stages.lenses.latents import Latents, find_latents
from pipeline.stages.tokens import Tokens
from pipeline.store import Store

__all__ = ["Inputs", "evenly", "latents_of", "layers_of", "needed_layers"]


@dataclass(frozen=True)
class Inputs:
    """What all lenses of a run share.

    Arguments:
        tokens: the artifact `tokens/`.
        activations: the artifact `activations.zarr`.
        model: the model.
        remote: whether it runs on NDIF.
    """

    tokens: Tokens
    activations: Store
    model: StandardizedTransformer
    remote: bool = False


def latents_of(name: str, config: LensConfig, inputs: Inputs, examples: Examples, needed: Sequence[int]) -> Latents:
    """The collected states that a lens reads.

    Arguments:
        name: of the lens, for messages.
        config: its config.
        inputs: of the run.
        examples: what it is run on.
        needed: the layers whose states it reads, ascending.

    Raises:
        InterpError: see `find_latents`.
    """
    reads = _reads(config)
    return find_latents(name, inputs.activations, reads.site, reads.position, needed, examples.sources)


def needed_layers(config: LensConfig, layers: list[int], num_layers: int) -> list[int]:
    """The layers whose states a lens reads, ascending.

    Arguments:
        config: of the lens.
        layers: that its option names, ascending.
        num_layers: of the model.
    """
    return _reads(config).needed(layers, num_layers)


def _reads(config: LensConfig) -> Reads:
    reads = reads_of(config)
    assert reads is not None, f"a lens of kind {config.kind} reads no states"
    return reads


def layers_of(name: str, key: str, text: str, num_layers: int) -> list[int]:
    """The layers that an option of a lens names.

    Arguments:
        name: of the lens, for messages.
        key: of the option, for messages.
        text: `*`, a range, a list.
        num_layers: of the model.

    Raises:
        InterpError: it cannot be read, or the model has no such layers.
    """
    try:
        return parse_layers(text, num_layers)
    except InterpError as error:
        raise InterpError(f"lens.{name}.{key}: {error}") from None


def evenly(layers: Sequence[int], most: int | None) -> list[int]:
    """Some of the layers: `most` of them, from the first to the last at even distances; None: all."""
    if most is None or len(layers) <= most:
        return list(layers)
    return [layers[round(place)] for place in np.linspace(0, len(layers) - 1, most).tolist()]

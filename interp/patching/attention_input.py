"""Attention that receives other vectors at some positions, in windows of layers; the MLP keeps what it receives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor, nn

from interp import passes
from interp.errors import InterpError
from interp.model.resolve import sublayer_of
from interp.model.verdicts import Pair, sample_ids
from interp.patching.fits import fits
from interp.patching.patched_runs import CleanRun, run_patched, walk_windows
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["receiving_fits", "walk_receiving"]

_NAME = "attention that receives other vectors"


@torch.no_grad()
def walk_receiving(
    clean: CleanRun, windows: Sequence[range], latents: Mapping[int, Tensor], columns: Sequence[int]
) -> Tensor:
    """Replace what attention receives at some positions, in windows of layers, by a walk up the layers.

    Arguments:
        clean: the prompts.
        windows: the layers of each entry, ascending by the first of them.
        latents: layer -> (row, position, hidden), `attn_in` of that layer; a layer without attention has none. Rows
            are as many as the prompts, or where the clean run has one prompt for all, any number.
        columns: the positions, all replaced at once, counted from the first that the clean run runs.

    Returns:
        (entry, row, hidden), the residual stream after the last layer at the last token.
    """
    prompts = len(clean.hidden(-1))
    copies = len(next(iter(latents.values()))) // prompts
    spread = [window for window in windows for _ in range(copies)]  # an entry is one for each copy of the prompts

    def inside(layer: int, hidden: Tensor, active: list[int]) -> Tensor:
        if layer not in latents:
            return clean.through(layer, hidden)
        held = latents[layer].unflatten(0, (copies, prompts))[[entry % copies for entry in active]]
        rows = torch.arange(len(hidden), device=hidden.device).unflatten(0, (-1, prompts))[active]
        with _receives(clean.model, layer, rows.flatten(), columns, held.flatten(0, 1), len(hidden)):
            return clean.through(layer, hidden)

    return walk_windows(clean, spread, inside).unflatten(0, (len(windows), copies)).flatten(1, 2)


@contextmanager
def _receives(
    model: StandardizedTransformer, layer: int, rows: Tensor, columns: Sequence[int], latents: Tensor, num_rows: int
) -> Iterator[None]:
    """For a while, the attention of a layer receives `latents` (row, position, hidden) at some columns of some rows."""
    sublayer = sublayer_of(model, "attention", layer)
    assert sublayer is not None  # the layer has latents
    written = False

    def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal written
        written = True
        live: Tensor = args[0] if args else next(iter(kwargs.values()))
        patched = live.reshape(num_rows, -1, live.shape[-1]).clone()  # in parallel layers the MLP holds the same tensor
        for place, column in enumerate(columns):
            patched[rows, column] = latents[:, place]
        patched = patched.view(live.shape)
        # CTRL's attention takes its input three times, as values, keys and queries.
        args = tuple(patched if given is live else given for given in args)
        return args, {name: patched if given is live else given for name, given in kwargs.items()}

    hook = passes.before(model.layer(layer).get(sublayer.module)._module, replace)
    try:
        yield
    finally:
        hook.remove()
    if not written:
        raise InterpError(f"layer {layer} of {type(model._module).__name__} ran without calling {sublayer.module}.")


def receiving_fits(model: StandardizedTransformer, longest: int) -> bool:
    """Whether `walk_receiving` gives what whole traced forward passes give; one line of the log says where not.

    Arguments:
        model: the model, which has attention.
        longest: tokens of the longest prompt.
    """
    return fits(model, _NAME, lambda length: _trial(model, length), longest=longest)


def _trial(model: StandardizedTransformer, length: int) -> list[Pair]:
    """Two prompts of a length, and what they end with, each way."""
    ids = sample_ids(model, length=length)
    attending = [layer for layer in range(model.num_layers) if model.has(Site("attn_in", layer))]
    first, middle = attending[0], attending[len(attending) // 2]
    windows = [range(first, middle + 1), range(middle, middle + 1)]
    positions = [length // 2, length // 2 + 2]

    # What attention receives for the other prompt, a token later: vectors of the size that it knows.
    latents: dict[int, Tensor] = {}
    with model.trace(input_ids=ids, use_cache=False) as tracer:
        for layer in attending:
            received = model.read(Site("attn_in", layer))
            latents[layer] = nnsight.save(received[:, [position + 1 for position in positions]].flip(0).clone())
        tracer.stop()

    def fast() -> Tensor:
        clean = CleanRun.of(model, ids, positions[0])
        return walk_receiving(clean, windows, latents, [position - clean.start for position in positions])

    def slow() -> Tensor:
        return torch.stack(
            [
                run_patched(
                    model,
                    ids.tolist(),
                    [positions] * len(ids),
                    [(Site("attn_in", layer), latents[layer]) for layer in window if layer in latents],
                )
                for window in windows
            ]
        )

    return [(fast, slow)]
